"""Hyper-parameters: typed, validated, read from a configuration of the plans.

A configuration in an nnU-Net plans file may hold a key ``nnunet_ext``::

    "3d_fullres_quick": {
        "inherits_from": "3d_fullres",
        "nnunet_ext": {"num_epochs": 250, "catenorm": {"reduction": 4}}
    }

The settings of training itself (:class:`TrainingSettings`) stand at its top level, the
settings of a method under the method's name. Whatever is not named keeps its default.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from nnunet_ext import registry
from nnunet_ext._common.errors import SettingsError
from nnunet_ext._common.near import did_you_mean

PLANS_KEY = "nnunet_ext"
"""Key of a plans configuration under which the settings stand."""

STRICT = ConfigDict(extra="forbid", strict=True)
"""Settings refuse unknown keys and do not convert types."""

NEUTRAL: dict[str, Any] = {"neutral": True}
"""Marks, as ``json_schema_extra``, a setting that does not influence what is learned."""

S = TypeVar("S")


@dataclass(frozen=True, config=STRICT)
class TrainingSettings:
    """Settings that every trainer understands; ``None`` keeps nnU-Net's own value."""

    num_epochs: Annotated[
        int | None, Field(ge=1, description="epochs (a suffix like _250epochs wins)")
    ] = None
    num_iterations_per_epoch: Annotated[
        int | None, Field(ge=1, description="training batches per epoch")
    ] = None
    num_val_iterations_per_epoch: Annotated[
        int | None, Field(ge=1, description="validation batches per epoch")
    ] = None
    save_every: Annotated[
        int | None, Field(ge=1, description="epochs between two latest checkpoints")
    ] = None
    optimizer: Annotated[
        Literal["sgd", "adam"], Field(description="sgd is nnU-Net's, with Nesterov momentum 0.99")
    ] = "sgd"
    initial_lr: Annotated[
        float | None,
        Field(
            gt=0, allow_inf_nan=False, description="learning rate; default 1e-2 (sgd), 1e-3 (adam)"
        ),
    ] = None
    seed: Annotated[
        int | None,
        Field(ge=0, lt=2**31, description="makes training repeatable if nnUNet_n_proc_DA=0"),
    ] = None
    sampling: Annotated[
        Literal["cases", "domains"],
        Field(description="cases are drawn alike, or domains are and then a case of the domain"),
    ] = "cases"
    augmentation: Annotated[
        Literal["stock", "strong", "gin", "strong+gin"],
        Field(description="nnU-Net's, its DA5, random convolutions of intensities, or both"),
    ] = "stock"
    gin_probability: Annotated[
        float, Field(ge=0, le=1, description="chance of each image to be changed by gin")
    ] = 1.0
    gin_depth: Annotated[int, Field(ge=1, description="convolutions of gin")] = 4
    mirror_prediction: Annotated[
        bool,
        Field(description="test-time mirroring; without, prediction is 4 (2D) to 8 times faster"),
    ] = True
    progress_bar: Annotated[
        bool, Field(description="bar inside the epoch; never when not on a terminal")
    ] = True


def read_training_settings(
    configuration: Mapping[str, Any], where: str = PLANS_KEY, methods: Iterable[str] = ()
) -> TrainingSettings:
    """Read what a plans configuration says about training itself.

    Args:
        configuration: A configuration of the plans, inheritance already resolved.
        where: How error messages name the place, e.g. ``'"3d_fullres" in CateNormPlans'``.
        methods: Methods that whoever trains reads by itself. Beside them may stand those that are
            registered: ours, which are read here, and those of installed packages.

    Raises:
        SettingsError: If the block names something that is neither a training setting nor
            a method, or a value has the wrong type or is out of range, in a block of a method of
            ours that this training does not read, too.
    """
    methods = tuple(methods)
    block = _block(configuration, PLANS_KEY, where)
    known = [field.name for field in dataclasses.fields(TrainingSettings)]
    allowed = {*known, *registry.METHODS, *methods}
    if not block.keys() <= allowed:  # only now, because other packages must be imported for it
        allowed |= {key for read in registry.others_settings().values() for key in read}
    unknown = [key for key in block if key not in allowed]
    if unknown:
        raise SettingsError(_unknown_key(where, unknown[0], allowed))
    if others := block.keys() & set(registry.METHODS).difference(methods):
        classes = registry.settings_classes()
        for method in sorted(others):
            read_method_settings(configuration, method, classes[method], where)
    return _validate(TrainingSettings, {k: block[k] for k in block if k in known}, where)


def read_method_settings(
    configuration: Mapping[str, Any], method: str, settings_class: type[S], where: str = PLANS_KEY
) -> S:
    """Read the settings of one method from a plans configuration.

    Args:
        configuration: A configuration of the plans, inheritance already resolved.
        method: Name of the method.
        settings_class: The method's settings, a dataclass of pydantic's or Python's.
        where: How error messages name the place.

    Raises:
        SettingsError: If a key is unknown, or a value has the wrong type or is out of range.
    """
    block = _block(_block(configuration, PLANS_KEY, where), method, where)
    where = f"{where}, {method}"
    return _validate(settings_class, _without_retired(block, settings_class, where), where)


def retired(settings: Any) -> Mapping[str, Any]:
    """Former settings of a method -> the value of them that is left, as plans hold it.

    A settings class names them, so that plans and checkpoints go on that hold just these values.
    """
    former: Mapping[str, Any] = getattr(settings, "retired", {})
    return former


def decisive(settings: Any) -> dict[str, Any]:
    """Return those settings that must stay as they are when a training is continued."""
    fields = type(settings).__pydantic_fields__
    return {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if not (fields[name].json_schema_extra or {}).get("neutral")
    }


def _block(parent: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    block = parent.get(key, {})
    if not isinstance(block, Mapping):
        raise SettingsError(f'{where}: "{key}" must be an object of settings, got {block!r}.')
    return block


def _without_retired(block: Mapping[str, Any], settings_class: type, where: str) -> dict[str, Any]:
    former = retired(settings_class)
    for key in block.keys() & former.keys():
        if block[key] != former[key]:
            raise SettingsError(
                f'{where}: "{key}" is no longer a setting, it is {json.dumps(former[key])} now. '
                "Remove it from the plans, or use the nnunet_ext that this model was made with."
            )
    return {key: value for key, value in block.items() if key not in former}


def _validate(settings_class: type[S], block: Mapping[str, Any], where: str) -> S:
    # not left to the class, because those of other packages need not be strict
    allowed = [field.name for field in dataclasses.fields(settings_class)]  # type: ignore[arg-type]
    unknown = [key for key in block if key not in allowed]
    if unknown:
        raise SettingsError(_unknown_key(where, unknown[0], allowed))
    try:
        # through JSON, so that strict validation accepts a list where a tuple is declared
        return TypeAdapter(settings_class).validate_json(json.dumps(block), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        if not first["loc"]:  # values that are allowed, but not together
            raise SettingsError(f"{where}: {first['msg'].removeprefix('Value error, ')}.") from None
        key = str(first["loc"][0])
        # one message for each kind of value that would be allowed
        _, *others = [each["msg"] for each in error.errors() if each["loc"][0] == key]
        choices = [first["msg"], *(other.removeprefix("Input should be ") for other in others)]
        allowed_values = " or ".join(choices).replace("a valid array", "an array such as [0, 1]")
        raise SettingsError(
            f'{where}: "{key}" is {json.dumps(first["input"])}. {allowed_values}.'
        ) from None


def _unknown_key(where: str, key: str, allowed: Iterable[str]) -> str:
    allowed = sorted(allowed)
    return (
        f'{where}: unknown setting "{key}".{did_you_mean(key, allowed)} '
        f"Allowed: {', '.join(allowed)}."
    )
