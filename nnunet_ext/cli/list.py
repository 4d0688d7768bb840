"""``nnunet-ext list``: what there is, what it is for, what it costs, how it is used."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nnunet_ext import planners, settings, trainers
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.near import did_you_mean

if TYPE_CHECKING:
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
    elif _is_trainer(name):
        _show_trainer(console, name)
    elif name in planners.MODULES:
        _show_planner(console, name)
    else:
        known = [*trainers.MODULES, *planners.MODULES]
        raise UserError(
            f'There is no trainer or planner "{name}".{did_you_mean(name, known)} '
            f"There are: {', '.join(known)}."
        )


def _is_trainer(name: str) -> bool:
    patterns = (trainers.LENGTH_SUFFIX, trainers.TWIN)
    plausible = any(pattern.fullmatch(name) for pattern in patterns)  # the rest takes seconds
    return name in trainers.MODULES or (plausible and hasattr(trainers, name))


def _show_all(console: "Console") -> None:
    from nnunet_ext.cli.catalogue import load_planners, load_trainers, method_settings

    with console.status("Importing the trainers ..."):
        all_trainers, all_planners = load_trainers(), load_planners()
    _heading(console, "Trainers", "nnUNetv2_train ... -tr NAME")
    console.print(_overview(all_trainers))
    _heading(console, "Planners", "nnUNetv2_plan_and_preprocess ... -pl NAME")
    console.print(_overview(all_planners))
    _show_training_settings(console)
    for method, settings_class in method_settings().items():
        _show_settings(console, f"Settings of {method}", settings_class, f"{method}.")
    console.print("\nSet them with: nnunet-ext configure --help", soft_wrap=True)
    console.print("More on one of them, with commands: nnunet-ext list NAME", soft_wrap=True)


def _show_trainer(console: "Console", name: str) -> None:
    with console.status(f"Importing {name} ..."):
        trainer = getattr(trainers, name)
    _show_facts(console, name, trainer)
    methods = trainer.collected_method_settings()
    for method, settings_class in methods.items():
        _show_settings(console, f"Settings of {method}", settings_class, f"{method}.")
    _show_training_settings(console)
    _show_commands(console, _trainer_commands(name, methods))


def _show_planner(console: "Console", name: str) -> None:
    with console.status(f"Importing {name} ..."):
        planner = getattr(planners, name)
    _show_facts(console, name, planner)
    trainer_name = name.removesuffix("Planner") + "Trainer"
    if trainer_name not in trainers.MODULES:
        trainer_name = "TRAINER"
    plans = planner.default_plans_name
    _show_commands(
        console,
        {
            f"Plan and preprocess; the plans are called {plans}": (
                f"nnUNetv2_plan_and_preprocess -d DATASET -pl {name}"
            ),
            "Train with these plans": (
                f"nnUNetv2_train DATASET 3d_fullres FOLD -tr {trainer_name} -p {plans}"
            ),
        },
    )


def _trainer_commands(name: str, methods: dict[str, type]) -> dict[str, str]:
    from nnunet_ext.cli.catalogue import planner_for

    planner_name = planner_for(name.partition("_")[0])  # without the suffix
    plans = getattr(planners, planner_name).default_plans_name if planner_name else None
    option = f" -p {plans}" if plans else ""
    commands = {}
    if planner_name:
        commands["Plan and preprocess (without -pl here and -p below: nnU-Net's own plans)"] = (
            f"nnUNetv2_plan_and_preprocess -d DATASET -pl {planner_name}"
        )
    commands["Train"] = f"nnUNetv2_train DATASET 3d_fullres FOLD -tr {name}{option}"
    commands["Predict"] = (
        f"nnUNetv2_predict -d DATASET -c 3d_fullres -f FOLD -tr {name}{option} -i INPUT -o OUTPUT"
    )
    commands["Train with other settings, under a name of your choice"] = (
        f"nnunet-ext configure DATASET{option} -c 3d_fullres --name 3d_fullres_mine"
        f" --set {_example_setting(methods)}"
    )
    return commands


def _example_setting(methods: dict[str, type]) -> str:
    from nnunet_ext.cli.settings_table import settings_of

    for method, settings_class in methods.items():
        for setting in settings_of(settings_class):
            if setting.default not in ("null", "[]"):
                return f"{method}.{setting.name}={setting.default.strip(chr(34))}"
    return "num_epochs=250"


def _overview(classes: dict[str, Any]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 1, 0), pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("what it is for", overflow="fold", ratio=3)
    table.add_column("relative cost", overflow="fold", ratio=2)
    for name, cls in classes.items():
        purpose = Text(cls.purpose)
        if paper := getattr(cls, "paper", ""):
            purpose.append(f"\n{paper}", style="dim")
        table.add_row(Text(name, style="bold"), purpose, Text(cls.relative_cost))
    return table


def _show_facts(console: "Console", name: str, cls: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    facts = {"for": "purpose", "cost": "relative_cost", "paper": "paper"}
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, attribute in facts.items():
        if value := getattr(cls, attribute, ""):
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
