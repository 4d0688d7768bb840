"""``nnunet-ext list``: what there is, what it is for, what it costs, how it is used."""

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_ext import registry, settings
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.nnunet.lookup import occurs_in_nnunet
from nnunet_ext.registry import PLANNERS, TRAINERS, Kind, Planner, Trainer

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
    elif trainer := _trainer(name):
        _show_trainer(console, name, trainer)
    elif planner := PLANNERS.get(name) or _other_planner(name):
        _show_planner(console, planner)
    else:
        others = [name for kind in registry.OURS for name in registry.others(kind)]
        known = [*TRAINERS, *PLANNERS, *others]
        raise UserError(
            f'There is no trainer or planner "{name}".{did_you_mean(name, known)} '
            f"There are: {', '.join(known)}."
        )


# --------------------------------------------------------------------------------- what there is


def _trainer(name: str) -> Trainer | None:
    base = registry.without_length(name)
    stock = base.replace("Extension", "nnUNet", 1)
    if base in TRAINERS:
        return TRAINERS[base]
    if registry.TWIN.fullmatch(base) and occurs_in_nnunet(stock):
        purpose = f"{stock} with settings from the plans; a fair baseline"
        return Trainer(base, "nnunet_ext.trainers", purpose, f"as {stock}")
    points = registry.others("trainers")
    point = points.get(name) or points.get(base)
    return _describe_trainer(point) if point else None


def _other_planner(name: str) -> Planner | None:
    point = registry.others("planners").get(name)
    return _describe_planner(point) if point else None


def _describe_trainer(point: "EntryPoint") -> Trainer:
    cls, purpose = _load_other("trainers", point)
    cost, paper = (str(getattr(cls, what, "")) for what in ("cost", "paper"))
    return Trainer(point.name, registry.package_of(point), purpose, cost, paper)


def _describe_planner(point: "EntryPoint") -> Planner:
    cls, purpose = _load_other("planners", point)
    plans = getattr(cls, "default_plans_name", None)
    if plans is None:  # not one of ours: nnU-Net's planners name it in their signature
        parameter = inspect.signature(cls).parameters.get("plans_name") if cls else None
        plans = str(parameter.default) if parameter else "PLANS"
    cost = str(getattr(cls, "cost", ""))
    return Planner(point.name, registry.package_of(point), plans, purpose, cost)


def _load_other(kind: Kind, point: "EntryPoint") -> tuple[Any, str]:
    """Class of another package, or None, and what it is for or why it does not work."""
    package = registry.package_of(point)
    if point.name in registry.OURS[kind] or occurs_in_nnunet(point.name):
        owner = "nnunet_ext" if point.name in registry.OURS[kind] else "nnU-Net"
        return None, f"not used: {owner} has one of this name, which wins (from {package})"
    try:
        cls = registry.load_other(point)
    except UserError as error:
        return None, f"broken: {error}"
    first_line, *_ = (cls.__doc__ or "no description").strip().splitlines()
    return cls, f"{getattr(cls, 'purpose', first_line)} (from {package})"


def _settings_read_by(name: str) -> dict[str, type]:
    """Method -> settings class of a trainer."""
    base, ours = registry.without_length(name), registry.settings_classes()
    if base in TRAINERS:
        return {method: ours[method] for method in TRAINERS[base].settings}
    others = registry.others_settings()
    return others.get(name) or others.get(base) or {}


# ---------------------------------------------------------------------------------- what is shown


def _show_all(console: "Console") -> None:
    other_trainers = [_describe_trainer(each) for each in registry.others("trainers").values()]
    other_planners = [_describe_planner(each) for each in registry.others("planners").values()]
    _heading(console, "Trainers", "nnUNetv2_train ... -tr NAME")
    console.print(_overview([*TRAINERS.values(), *other_trainers]))
    _heading(console, "Planners", "nnUNetv2_plan_and_preprocess ... -pl NAME")
    console.print(_overview([*PLANNERS.values(), *other_planners]))
    _show_training_settings(console)
    methods = registry.settings_classes()
    for read in registry.others_settings().values():
        methods = read | methods
    for method, settings_class in methods.items():
        _show_settings(console, f"Settings of {method}", settings_class, f"{method}.")
    console.print("\nSet them with: nnunet-ext configure --help", soft_wrap=True)
    console.print("More on one of them, with commands: nnunet-ext list NAME", soft_wrap=True)


def _show_trainer(console: "Console", name: str, trainer: Trainer) -> None:
    _show_facts(console, name, trainer)
    methods = _settings_read_by(name)
    for method, settings_class in methods.items():
        _show_settings(console, f"Settings of {method}", settings_class, f"{method}.")
    _show_training_settings(console)
    planner = next(iter(trainer.planners), None)
    option = f" -p {planner.plans}" if planner else ""
    commands = {}
    if planner:
        commands["Plan and preprocess (without -pl here and -p below: nnU-Net's own plans)"] = (
            f"nnUNetv2_plan_and_preprocess -d DATASET -pl {planner.name}"
        )
    commands["Train"] = f"nnUNetv2_train DATASET 3d_fullres FOLD -tr {name}{option}"
    commands["Predict"] = (
        f"nnUNetv2_predict -d DATASET -c 3d_fullres -f FOLD -tr {name}{option} -i INPUT -o OUTPUT"
    )
    commands["Train with other settings, under a name of your choice"] = (
        f"nnunet-ext configure DATASET{option} -c 3d_fullres --name 3d_fullres_mine"
        f" --set {_example_setting(methods)}"
    )
    _show_commands(console, commands)


def _show_planner(console: "Console", planner: Planner) -> None:
    _show_facts(console, planner.name, planner)
    trainer = next((name for name, each in TRAINERS.items() if planner in each.planners), "TRAINER")
    _show_commands(
        console,
        {
            f"Plan and preprocess; the plans are called {planner.plans}": (
                f"nnUNetv2_plan_and_preprocess -d DATASET -pl {planner.name}"
            ),
            "Train with these plans": (
                f"nnUNetv2_train DATASET 3d_fullres FOLD -tr {trainer} -p {planner.plans}"
            ),
        },
    )


def _example_setting(methods: Mapping[str, type]) -> str:
    from nnunet_ext.cli.settings_table import settings_of

    for method, settings_class in methods.items():
        for setting in settings_of(settings_class):
            if setting.default not in ("null", "[]"):
                return f"{method}.{setting.name}={setting.default.strip(chr(34))}"
    return "num_epochs=250"


def _overview(entries: Iterable[Trainer | Planner]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is for", overflow="fold", ratio=3)
    table.add_column("relative cost", overflow="fold", ratio=2)
    for entry in entries:
        purpose = Text(entry.purpose)
        if isinstance(entry, Trainer) and entry.paper:
            # without the scheme, a link to arXiv fits into one line
            source = f"\n{entry.paper}\n{entry.link.removeprefix('https://')}"
            purpose.append(source.rstrip(), style="dim")
        table.add_row(Text(entry.name, style="bold"), purpose, Text(entry.cost))
    return table


def _show_facts(console: "Console", name: str, entry: Trainer | Planner) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, what in {"for": "purpose", "cost": "cost", "paper": "paper", "": "link"}.items():
        if value := getattr(entry, what, ""):
            table.add_row(label, Text(value))
    console.print(Text(name, style="bold"))
    console.print(table)


def _show_training_settings(console: "Console") -> None:
    cls = settings.TrainingSettings
    _show_settings(console, "Settings of training itself, for every trainer here", cls)
    console.print("null keeps nnU-Net's own value.")


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
