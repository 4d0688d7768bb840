"""``nnunet-ext list``: what there is, what it is for, what it costs, how it is used."""

import inspect
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Argument

from nnunet_ext import registry, settings
from nnunet_ext._common.console import lay_out, say, say_json, show
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.cli.options import AsJson
from nnunet_ext.cli.settings_table import settings_of, settings_table
from nnunet_ext.nnunet.lookup import occurs_in_nnunet
from nnunet_ext.registry import OURS, TRAINERS, Entry, Kind, Planner, Trainer, others

Name = Annotated[
    str | None,
    Argument(metavar="NAME", help="A trainer or planner; without it, all are listed."),
]


def command(name: Name = None, as_json: AsJson = False) -> None:
    """List trainers, planners and settings, or show one of them with its commands.

    \b
    Examples:
      nnunet-ext list
      nnunet-ext list CateNormTrainer
    """
    if name is None:
        listed = _listed()
        if as_json:
            found = {kind: [*map(_facts, entries)] for kind, entries in listed.items()}
            training = [each._asdict() for each in settings_of(settings.TrainingSettings)]
            say_json({**found, "training_settings": training})
        else:
            _show_all(listed)
    elif entry := _find("trainers", name) or _find("planners", name):
        if as_json:
            say_json(_facts(entry) | {"name": name, "commands": _commands(name, entry)})
        else:
            _show_one(name, entry)
    else:
        known = [name for kind in OURS for name in {**OURS[kind], **others(kind)}]
        raise UserError(
            f'There is no trainer or planner "{name}".{did_you_mean(name, known)} '
            f"There are: {', '.join(known)}."
        )


def _facts(entry: Entry) -> dict[str, Any]:
    """What an entry says, for other programs."""
    told = ("name", "purpose", "cost", "paper", "link", "plans")
    facts: dict[str, Any] = {
        what: str(getattr(entry, what)) for what in told if hasattr(entry, what)
    }
    if isinstance(entry, Trainer):
        facts["settings"] = {
            method: [each._asdict() for each in settings_of(settings_class)]
            for method, settings_class in entry.settings_classes.items()
        }
    return facts


def _find(kind: Kind, name: str) -> Entry | None:
    base = registry.without_length(name) if kind == "trainers" else name
    if base in OURS[kind]:
        return OURS[kind][base]
    stock = base.replace("Extension", "nnUNet", 1)
    if kind == "trainers" and registry.TWIN.fullmatch(base) and occurs_in_nnunet(stock):
        purpose = f"{stock} with settings from the plans; a fair baseline"
        return Trainer(base, "nnunet_ext.trainers", purpose, f"as {stock}")
    point = others(kind).get(name) or others(kind).get(base)
    return _describe(kind, point) if point else None


def _describe(kind: Kind, point: EntryPoint) -> Entry:
    """What a class of another package says of itself, or why it does not work."""
    name, package = point.name, registry.package_of(point)
    if name in OURS[kind] or occurs_in_nnunet(name):
        owner = "nnunet_ext" if name in OURS[kind] else "nnU-Net"
        return Entry(name, package, f"not used: {owner} has one of this name (from {package})")
    try:
        cls = registry.load_other(point)
    except UserError as error:
        return Entry(name, package, f"broken: {error}")
    first_line = (cls.__doc__ or "no description").strip().partition("\n")[0]
    purpose = f"{getattr(cls, 'purpose', first_line)} (from {package})"
    cost, paper = (str(getattr(cls, what, "")) for what in ("cost", "paper"))
    if kind == "trainers":
        settings = registry.settings_read_by(cls)
        return Trainer(name, package, purpose, cost, paper, settings=settings)
    plans = getattr(cls, "default_plans_name", None)
    if plans is None:  # as nnU-Net's planners say it
        plans = inspect.signature(cls).parameters["plans_name"].default
    return Planner(name, package, purpose, cost, plans)


def _listed() -> dict[Kind, list[Entry]]:
    return {
        kind: [*OURS[kind].values(), *(_describe(kind, each) for each in others(kind).values())]
        for kind in OURS
    }


def _show_all(listed: dict[Kind, list[Entry]]) -> None:
    _heading("Trainers", "nnUNetv2_train ... -tr NAME")
    show(_overview(listed["trainers"]))
    _heading("Planners", "nnUNetv2_plan_and_preprocess ... -pl NAME")
    show(_overview(listed["planners"]))
    _show_training_settings()
    methods: dict[str, type] = {}
    for entry in listed["trainers"]:
        methods = (entry.settings_classes if isinstance(entry, Trainer) else {}) | methods
    _show_method_settings(methods)
    say("\nSet them with: nnunet-ext configure --help")
    say("More on one of them, with commands: nnunet-ext list NAME")


def _show_one(name: str, entry: Entry) -> None:
    labels = {"for": "purpose", "cost": "cost", "paper": "paper", "": "link"}
    facts = [(label, str(getattr(entry, what, ""))) for label, what in labels.items()]
    say(name, "bold")
    show(lay_out([fact for fact in facts if fact[1]], {1}))
    if isinstance(entry, Trainer):
        _show_method_settings(entry.settings_classes)
        _show_training_settings()
    commands = _commands(name, entry)
    if commands:
        _heading("Commands")
    for purpose, line in commands.items():
        say(f"# {purpose}", "dim")
        say(line)


def _commands(name: str, entry: Entry) -> dict[str, str]:
    """What it is for -> command."""
    if isinstance(entry, Planner):
        trainer = next((n for n, each in TRAINERS.items() if entry in each.planners), "TRAINER")
        return {
            f"Plan and preprocess; the plans are called {entry.plans}": (
                f"nnUNetv2_plan_and_preprocess -d DATASET -pl {entry.name}"
            ),
            "Train with these plans": (
                f"nnUNetv2_train DATASET 3d_fullres FOLD -tr {trainer} -p {entry.plans}"
            ),
        }
    if not isinstance(entry, Trainer):
        return {}
    option, commands = "", {}
    if entry.planners:
        planner, *_ = entry.planners
        option = f" -p {planner.plans}"
        commands["Plan and preprocess (without -pl here and -p below: nnU-Net's own plans)"] = (
            f"nnUNetv2_plan_and_preprocess -d DATASET -pl {planner.name}"
        )
    commands["Train"] = f"nnUNetv2_train DATASET 3d_fullres FOLD -tr {name}{option}"
    commands["Predict"] = (
        f"nnUNetv2_predict -d DATASET -c 3d_fullres -f FOLD -tr {name}{option} -i INPUT -o OUTPUT"
    )
    commands["Train with other settings, under a name of your choice"] = (
        f"nnunet-ext configure DATASET{option} -c 3d_fullres --name 3d_fullres_mine"
        f" --set {_example_setting(entry.settings_classes)}"
    )
    return commands


def _example_setting(methods: dict[str, type]) -> str:
    for method, settings_class in methods.items():
        for setting in settings_of(settings_class):
            if setting.default not in ("null", "[]"):
                return f"{method}.{setting.name}={setting.default.strip(chr(34))}"
    return "num_epochs=250"


def _overview(entries: Iterable[Entry]) -> Table:
    rows = []
    for entry in entries:
        purpose = Text(entry.purpose)
        if isinstance(entry, Trainer) and entry.paper:
            # without the scheme, a link to arXiv fits into one line
            source = f"\n{entry.paper}\n{entry.link.removeprefix('https://')}"
            purpose.append(source.rstrip(), style="dim")
        rows.append((Text(entry.name, style="bold"), purpose, entry.cost))
    return lay_out(rows, {1, 2}, ("name", "what it is for", "relative cost"), gap=1)


def _show_training_settings() -> None:
    _heading("Settings of training itself, for every trainer here")
    show(settings_table(settings_of(settings.TrainingSettings)))
    say("null keeps nnU-Net's own value.")


def _show_method_settings(methods: dict[str, type]) -> None:
    for method, settings_class in methods.items():
        _heading(f"Settings of {method}")
        show(settings_table(settings_of(settings_class), f"{method}."))


def _heading(title: str, hint: str = "") -> None:
    line = Text(f"\n{title}", style="bold underline")
    show(line.append(f"  {hint}", style="not bold not underline dim") if hint else line)
