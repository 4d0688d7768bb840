"""``nnunet-ext configure``: vary settings under a name of their own in the plans."""

import copy
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Annotated, Any

from rich.table import Table
from rich.text import Text
from typer import Option

from nnunet_ext import registry
from nnunet_ext._common.console import lay_out, say, show
from nnunet_ext._common.errors import SettingsError, UserError
from nnunet_ext._common.files import read_json
from nnunet_ext.cli.options import Dataset, Plans
from nnunet_ext.domains.splits import SPLITS_FILE
from nnunet_ext.nnunet.lookup import users_settings
from nnunet_ext.nnunet.plans import Configuration, PlansFile, open_plans
from nnunet_ext.settings import (
    PLANS_KEY,
    TrainingSettings,
    read_method_settings,
    read_training_settings,
)

Base = Annotated[
    str,
    Option("-c", "--configuration", metavar="BASE", help="Configuration to start from or show."),
]
Name = Annotated[str | None, Option(metavar="NAME", help="Name of the new configuration.")]
Set = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="A setting; may be given repeatedly."),
]
Replace = Annotated[
    bool, Option("--overwrite", help="Replace a configuration made by this command.")
]
Show = Annotated[bool, Option("--show", help="Show the settings in force; writes nothing.")]

NNUNETS_FOLDS = 5
"""How many folds nnU-Net makes if nobody has."""
STOCK_NAMES = ("2d", "3d_lowres", "3d_fullres", "3d_cascade_fullres")
"""Configurations that nnU-Net's planners write; planning again would write over ours."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_PYTHON_LITERALS = {"True": True, "False": False, "None": None}


def command(
    dataset: Dataset,
    plans: Plans = "nnUNetPlans",
    base: Base = "3d_fullres",
    name: Name = None,
    assignments: Set = None,
    overwrite: Replace = False,
    show: Show = False,
) -> None:
    """Write a named configuration with settings of your own into the plans.

    It inherits everything else from its base.

    \b
    What can be set:
      nnunet-ext list

    \b
    Examples:
      nnunet-ext configure 4 -p CateNormPlans -c 3d_fullres --name 3d_fullres_r4 \\
          --set catenorm.reduction=4 --set num_epochs=250
      nnunet-ext configure 4 -p CateNormPlans -c 3d_fullres_r4 --show
    """
    if show:
        if name or assignments or overwrite:
            raise UserError("--show writes nothing: leave out --name, --set and --overwrite.")
        _show_settings(open_plans(dataset, plans), base)
        return
    if not name or not assignments:
        raise UserError(
            "A new configuration needs a --name and at least one --set KEY=VALUE, for example: "
            f"nnunet-ext configure {dataset} -p {plans} -c {base} --name {base}_short "
            "--set num_epochs=250"
        )
    changes = [parse(assignment) for assignment in assignments]
    plans_file = open_plans(dataset, plans)
    _refuse_name(plans_file, name, overwrite)
    _refuse_base(plans_file, base, name)
    configuration = _varied(plans_file, base, name, changes)
    plans_file.configurations[name] = configuration | _kept(plans_file, name)
    _announce_to_previous_stage(plans_file, name)
    plans_file.save()
    _report(plans_file, dataset, name)


# ---------------------------------------------------------------------------------- what is asked


def parse(assignment: str) -> tuple[list[str], Any]:
    """Take ``KEY=VALUE`` apart: the path of the setting, and its value read as JSON if it is."""
    key, equals, text = assignment.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError(
            f'--set {assignment}: expected KEY=VALUE, for example "--set num_epochs=250" '
            'or "--set catenorm.reduction=4".'
        )
    return path, _value(text.strip())


def _value(text: str) -> Any:
    if text in _PYTHON_LITERALS:
        return _PYTHON_LITERALS[text]
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        return text


def _refuse_constant(constant: str) -> Any:
    # NaN and Infinity are no JSON; they would make the plans unreadable outside Python
    raise ValueError(constant)


def _refuse_base(plans_file: PlansFile, base: str, name: str) -> None:
    if name in plans_file.inheritance(base):
        raise UserError(
            f'"{base}" inherits from "{name}" or is the same, so "{name}" cannot inherit from it. '
            "Choose another --name."
        )


def _refuse_name(plans_file: PlansFile, name: str, overwrite: bool) -> None:
    if "__" in name or not _NAME.fullmatch(name):
        raise UserError(
            f'"{name}" cannot be the name of a configuration, which nnU-Net uses in folder names '
            "and splits at double underscores. Use letters, digits, dots, dashes and single "
            "underscores, the first and the last a letter or digit."
        )
    existing = plans_file.configurations.get(name)
    if existing is None:
        return
    if name in STOCK_NAMES or PLANS_KEY not in existing or "inherits_from" not in existing:
        raise UserError(
            f'"{name}" in {plans_file.path} was not made by this command and stays as it is. '
            "Choose another --name."
        )
    if not overwrite:
        raise UserError(
            f'{plans_file.path} has a configuration "{name}" already. Choose another --name, or '
            "replace it with --overwrite (models trained with it keep their old settings)."
        )


# -------------------------------------------------------------------------------- what is written


def _varied(
    plans_file: PlansFile, base: str, name: str, changes: Iterable[tuple[list[str], Any]]
) -> Configuration:
    where = f'"{name}" in {plans_file.name}'
    # nnU-Net's inheritance replaces the whole key, so the base's settings must be copied
    settings = copy.deepcopy(plans_file.resolve(base).get(PLANS_KEY, {}))
    for path, value in changes:
        put(settings, path, value, where)
    _refuse_wrong_settings({PLANS_KEY: settings}, where)
    return {"inherits_from": base, PLANS_KEY: settings}


def _kept(plans_file: PlansFile, name: str) -> Configuration:
    """Return what an overwritten configuration held besides what this command decides."""
    ours = ("inherits_from", PLANS_KEY)
    existing = plans_file.configurations.get(name, {})
    return {key: value for key, value in existing.items() if key not in ours}


def put(settings: Any, path: list[str], value: Any, where: str) -> None:
    """Set a value deep in nested settings; ``where`` is named if something is in the way."""
    for depth, key in enumerate(path[:-1]):
        if isinstance(settings, dict):
            settings = settings.setdefault(key, {})
        if not isinstance(settings, dict):
            raise UserError(
                f"{where}: {'.'.join(path)} cannot be set, because "
                f"{'.'.join(path[: depth + 1])} is {json.dumps(settings)}."
            )
    settings[path[-1]] = value


def _refuse_wrong_settings(configuration: Configuration, where: str) -> None:
    """Read all settings that a configuration holds."""
    block = configuration[PLANS_KEY]
    classes = _classes(_readers(block))
    try:
        read_training_settings(configuration, where, classes)
    except SettingsError as error:
        meant = [
            f"{method}.{field.name}"
            for method, settings_class in classes.items()
            for field in fields(settings_class)
            if field.name in block
        ]
        hint = f" Settings of a method begin with its name: {', '.join(meant)}." if meant else ""
        raise SettingsError(f"{error}{hint}") from None
    for method in block.keys() & classes.keys():
        read_method_settings(configuration, method, classes[method], where)


def _readers(block: Mapping[str, Any]) -> dict[str, Mapping[str, type]]:
    """Trainer -> method -> settings class; beyond ours only where the block needs it.

    Looking at other packages and the user's folders imports them, and torch.
    """
    readers: dict[str, Mapping[str, type]] = {
        trainer.name: trainer.settings_classes for trainer in registry.TRAINERS.values()
    }
    known = {*registry.METHODS, *(field.name for field in fields(TrainingSettings))}
    if isinstance(block, Mapping) and not block.keys() <= known:
        for name, read in registry.others_settings().items():
            readers.setdefault(name, read)
        readers.update(users_settings())
    return readers


def _classes(readers: Mapping[str, Mapping[str, type]]) -> dict[str, Any]:
    return {method: cls for read in readers.values() for method, cls in read.items()}


def _announce_to_previous_stage(plans_file: PlansFile, name: str) -> None:
    """Have the first stage of a cascade predict for the new second stage as well.

    nnU-Net's first stage writes its segmentations once per configuration in its
    ``next_stage``; a second stage that is not listed there would find none.
    """
    previous = plans_file.resolve(name).get("previous_stage")
    if previous is None:
        return
    listed = plans_file.resolve(previous).get("next_stage") or []
    listed = [listed] if isinstance(listed, str) else list(listed)
    if name not in listed:
        plans_file.configurations[previous]["next_stage"] = [*listed, name]


# ------------------------------------------------------------------------------------ what is said


def _report(plans_file: PlansFile, dataset: str, name: str) -> None:
    resolved = plans_file.resolve(name)
    readers = _readers(resolved[PLANS_KEY])
    methods = _classes(readers).keys() & resolved[PLANS_KEY].keys()
    suitable = [trainer for trainer, read in readers.items() if methods <= read.keys()]
    planner = str(plans_file.content.get("experiment_planner_used", ""))
    # first the trainer whose planner made these plans
    suitable.sort(key=lambda trainer: not planner.startswith(trainer.removesuffix("Trainer")))
    trainer = suitable[0] if suitable else "TRAINER"
    options = f"-tr {trainer} -p {plans_file.name}"
    say(f'Wrote "{name}" to {plans_file.path}:')
    say(json.dumps(plans_file.configurations[name], indent=4))
    if previous := resolved.get("previous_stage"):
        say(
            "\nThis is the second stage of a cascade and needs predictions of the first one,"
            f'\n"{previous}". Train that first; if it is trained already, run for each FOLD:'
        )
        say(f"nnUNetv2_train {dataset} {previous} FOLD {options} --val")
    splits = plans_file.path.with_name(SPLITS_FILE)
    folds = len(read_json(splits)) if splits.exists() else NNUNETS_FOLDS
    say(f"\nTrain with it, for FOLD 0 to {folds - 1}:")
    say(f"nnUNetv2_train {dataset} {name} FOLD {options}")
    if not suitable:
        say(f"No trainer reads the settings of all of {', '.join(methods)}: put yours for TRAINER.")
    elif len(suitable) > 1:
        say(f"Other trainers that read these settings: {', '.join(suitable[1:])}.")


def _show_settings(plans_file: PlansFile, name: str) -> None:
    where = f'"{name}" in {plans_file.name}'
    chain = plans_file.inheritance(name)
    resolved = plans_file.resolve(name)
    block: Mapping[str, Any] = resolved.get(PLANS_KEY, {})
    classes = _classes(_readers(block))
    training = read_training_settings(resolved, where, classes)
    tables = [_values_table(asdict(training), block)]
    for method, settings_class in classes.items():
        values: Any = read_method_settings(resolved, method, settings_class, where)
        tables.append(_values_table(asdict(values), block.get(method, {}), f"{method}."))
    say(f"Settings in force for {where}")
    if len(chain) > 1:
        say(f"Inheritance: {' -> '.join(chain)}")
    for table in tables:
        say("")
        show(table)


def _values_table(values: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> Table:
    rows = []
    for key, value in values.items():
        style, origin = ("bold", "set") if key in given else ("dim", "default")
        rows.append([Text(each, style) for each in (prefix + key, json.dumps(value), origin)])
    return lay_out(rows, {1})
