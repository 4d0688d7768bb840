"""``nnunet-ext list``: what there is, what it is for, what it costs, how it is used."""

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from nnunet_ext import registry, settings
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.nnunet.lookup import occurs_in_nnunet
from nnunet_ext.registry import OURS, TRAINERS, Entry, Kind, Planner, Trainer, others

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from rich.console import Console
    from rich.table import Table


def list_methods(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="A trainer or planner; without it, all are listed."),
    ] = None,
) -> None:
    """List trainers, planners and settings, or show one of them with its commands.

    \b
    Examples:
      nnunet-ext list
      nnunet-ext list CateNormTrainer
    """
    from rich.console import Console

    console = Console(highlight=False)
    if name is None:
        _show_all(console)
    elif entry := _find("trainers", name) or _find("planners", name):
        _show_facts(console, name, entry)
        if isinstance(entry, Trainer):
            _show_trainer(console, name, entry)
        elif isinstance(entry, Planner):
            _show_planner(console, entry)
    else:
        known = [name for kind in OURS for name in {**OURS[kind], **others(kind)}]
        raise UserError(
            f'There is no trainer or planner "{name}".{did_you_mean(name, known)} '
            f"There are: {', '.join(known)}."
        )


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


def _describe(kind: Kind, point: "EntryPoint") -> Entry:
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


def _show_all(console: "Console") -> None:
    listed: dict[Kind, list[Entry]] = {
        kind: [*OURS[kind].values(), *(_describe(kind, each) for each in others(kind).values())]
        for kind in OURS
    }
    _heading(console, "Trainers", "nnUNetv2_train ... -tr NAME")
    console.print(_overview(listed["trainers"]))
    _heading(console, "Planners", "nnUNetv2_plan_and_preprocess ... -pl NAME")
    console.print(_overview(listed["planners"]))
    _show_training_settings(console)
    methods: dict[str, type] = {}
    for entry in listed["trainers"]:
        methods = (entry.settings_classes if isinstance(entry, Trainer) else {}) | methods
    _show_method_settings(console, methods)
    console.print("\nSet them with: nnunet-ext configure --help", soft_wrap=True)
    console.print("More on one of them, with commands: nnunet-ext list NAME", soft_wrap=True)


def _show_trainer(console: "Console", name: str, trainer: Trainer) -> None:
    _show_method_settings(console, trainer.settings_classes)
    _show_training_settings(console)
    option, commands = "", {}
    if trainer.planners:
        planner, *_ = trainer.planners
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
        f" --set {_example_setting(trainer.settings_classes)}"
    )
    _show_commands(console, commands)


def _show_planner(console: "Console", planner: Planner) -> None:
    trainer = next((name for name, each in TRAINERS.items() if planner in each.planners), "TRAINER")
    plan = f"nnUNetv2_plan_and_preprocess -d DATASET -pl {planner.name}"
    train = f"nnUNetv2_train DATASET 3d_fullres FOLD -tr {trainer} -p {planner.plans}"
    called = f"Plan and preprocess; the plans are called {planner.plans}"
    _show_commands(console, {called: plan, "Train with these plans": train})


def _example_setting(methods: dict[str, type]) -> str:
    from nnunet_ext.cli.settings_table import settings_of

    for method, settings_class in methods.items():
        for setting in settings_of(settings_class):
            if setting.default not in ("null", "[]"):
                return f"{method}.{setting.name}={setting.default.strip(chr(34))}"
    return "num_epochs=250"


def _overview(entries: Iterable[Entry]) -> "Table":
    from rich.text import Text

    from nnunet_ext._common.console import lay_out

    rows = []
    for entry in entries:
        purpose = Text(entry.purpose)
        if isinstance(entry, Trainer) and entry.paper:
            # without the scheme, a link to arXiv fits into one line
            source = f"\n{entry.paper}\n{entry.link.removeprefix('https://')}"
            purpose.append(source.rstrip(), style="dim")
        rows.append((Text(entry.name, style="bold"), purpose, entry.cost))
    return lay_out(rows, {1, 2}, ("name", "what it is for", "relative cost"), gap=1)


def _show_facts(console: "Console", name: str, entry: Entry) -> None:
    from rich.text import Text

    from nnunet_ext._common.console import lay_out

    labels = {"for": "purpose", "cost": "cost", "paper": "paper", "": "link"}
    facts = [(label, str(getattr(entry, what, ""))) for label, what in labels.items()]
    console.print(Text(name, style="bold"))
    console.print(lay_out([fact for fact in facts if fact[1]], {1}))


def _show_training_settings(console: "Console") -> None:
    cls = settings.TrainingSettings
    _show_settings(console, "Settings of training itself, for every trainer here", cls)
    console.print("null keeps nnU-Net's own value.")


def _show_method_settings(console: "Console", methods: dict[str, type]) -> None:
    for method, settings_class in methods.items():
        _show_settings(console, f"Settings of {method}", settings_class, f"{method}.")


def _show_settings(console: "Console", title: str, settings_class: type, prefix: str = "") -> None:
    from nnunet_ext.cli.settings_table import settings_of, settings_table

    _heading(console, title)
    console.print(settings_table(settings_of(settings_class), prefix))


def _show_commands(console: "Console", commands: dict[str, str]) -> None:
    from rich.text import Text

    _heading(console, "Commands")
    for purpose, command in commands.items():
        console.print(f"# {purpose}", style="dim")
        console.print(Text(command), soft_wrap=True)  # one line, so that it can be copied


def _heading(console: "Console", title: str, hint: str = "") -> None:
    from rich.text import Text

    line = Text(f"\n{title}", style="bold underline")
    if hint:
        line.append(f"  {hint}", style="not bold not underline dim")
    console.print(line)
