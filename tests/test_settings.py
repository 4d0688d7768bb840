"""Settings: whatever a plans file may hold is either understood or refused by its name."""

import dataclasses
import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnunet_ext._common.errors import SettingsError
from nnunet_ext.registry import METHODS
from nnunet_ext.settings import (
    PLANS_KEY,
    TrainingSettings,
    read_method_settings,
    read_training_settings,
    retired,
)
from nnunet_ext.settings.catenorm import CateNormSettings

WHERE = '"3d_fullres" in TinyPlans'
TRAINING_KEYS = [field.name for field in dataclasses.fields(TrainingSettings)]
CATENORM_KEYS = [field.name for field in dataclasses.fields(CateNormSettings)]

positive = st.integers(1, 10**6)
training_settings = st.builds(
    TrainingSettings,
    num_epochs=st.none() | positive,
    num_iterations_per_epoch=st.none() | positive,
    num_val_iterations_per_epoch=st.none() | positive,
    save_every=st.none() | positive,
    optimizer=st.sampled_from(["sgd", "adam"]),
    initial_lr=st.none() | st.floats(0, 10, exclude_min=True),
    seed=st.none() | st.integers(0, 2**31 - 1),
    mirror_prediction=st.booleans(),
    progress_bar=st.booleans(),
)
stages = st.lists(st.integers(0, 9), max_size=4).map(tuple)
catenorm_settings = st.builds(
    CateNormSettings,
    encoder_stages=st.none() | stages,
    decoder_stages=stages,
    reduction=positive,
    norm=st.sampled_from(["plan", "batch", "instance"]),
    predict=st.sampled_from(["second", "first"]),
    updates=st.sampled_from(["alternating", "joint"]),
    plain_fraction=st.floats(0, 1, exclude_max=True),
    prior_augmentation=st.floats(0, 1),
    recompute=st.booleans(),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


def configuration(block: Any) -> dict[str, Any]:
    """A configuration as it comes out of a plans file."""
    read: dict[str, Any] = json.loads(json.dumps({"patch_size": [16], PLANS_KEY: block}))
    return read


def read_training(block: Any) -> TrainingSettings:
    return read_training_settings(configuration(block), WHERE)


def read_catenorm(block: Any) -> CateNormSettings:
    return read_method_settings(
        configuration({"catenorm": block}), "catenorm", CateNormSettings, WHERE
    )


def refusal_of(read: Any, block: Any) -> str:
    with pytest.raises(SettingsError) as refusal:
        read(block)
    return str(refusal.value)


@given(training_settings)
def test_training_settings_survive_the_plans_file(settings: TrainingSettings) -> None:
    assert read_training(dataclasses.asdict(settings)) == settings


@given(catenorm_settings)
def test_method_settings_survive_the_plans_file(settings: CateNormSettings) -> None:
    assert read_catenorm(dataclasses.asdict(settings)) == settings


@given(training_settings, st.data())
def test_what_is_not_named_keeps_its_default(
    settings: TrainingSettings, data: st.DataObject
) -> None:
    named = data.draw(st.sets(st.sampled_from(TRAINING_KEYS)))
    block = {key: value for key, value in vars(settings).items() if key in named}
    assert read_training(block) == dataclasses.replace(TrainingSettings(), **block)


def test_plans_without_our_key_mean_defaults() -> None:
    assert read_training_settings({"patch_size": [16]}) == TrainingSettings()
    assert read_method_settings({}, "catenorm", CateNormSettings) == CateNormSettings()


def test_a_setting_that_has_become_a_constant_is_refused_by_name_unless_it_is_that() -> None:
    assert read_catenorm({"follow_stage_kernel": False, "reduction": 4}).reduction == 4
    message = refusal_of(read_catenorm, {"follow_stage_kernel": True})
    assert message.startswith(
        f'{WHERE}, catenorm: "follow_stage_kernel" is no longer a setting, it is false now.'
    )


@pytest.mark.parametrize("method", METHODS)
def test_no_setting_is_also_a_former_one(method: str) -> None:
    module = import_module(f"nnunet_ext.settings.{method}")
    (settings_class,) = (
        each
        for name, each in vars(module).items()
        if name.lower() == f"{method.replace('_', '')}settings"
    )
    assert retired(settings_class)
    assert not retired(settings_class).keys() & settings_class.__pydantic_fields__.keys()


def test_settings_of_methods_do_not_disturb_those_of_training() -> None:
    assert read_training({"catenorm": {"reduction": 4}, "num_epochs": 3}).num_epochs == 3


def test_a_slip_of_the_pen_in_the_block_of_another_method_is_refused() -> None:
    with pytest.raises(SettingsError, match=r'condseg: unknown setting "first_phaze".*first_phase'):
        read_training({"condseg": {"first_phaze": 0.1}})
    # who reads a method says itself what it allows
    block = configuration({"condseg": {"mine": 1}})
    assert read_training_settings(block, WHERE, ["condseg"]) == TrainingSettings()


@given(st.text(), json_values)
def test_an_unknown_key_is_named_with_the_allowed_ones(key: str, value: Any) -> None:
    if key not in (*TRAINING_KEYS, *METHODS):
        message = refusal_of(read_training, {key: value})
        assert message.startswith(f'{WHERE}: unknown setting "{key}".')
        assert all(name in message for name in (*TRAINING_KEYS, *METHODS))
    if key not in (*CATENORM_KEYS, *CateNormSettings.retired):
        message = refusal_of(read_catenorm, {key: value})
        assert message.startswith(f'{WHERE}, catenorm: unknown setting "{key}".')
        assert all(name in message for name in CATENORM_KEYS)


def test_an_unknown_key_beside_a_wrong_value_is_refused_as_well() -> None:
    assert "unknown" in refusal_of(read_training, {"num_epochs": 0, "epochs": 3})


@pytest.mark.parametrize(("key", "meant"), [("num_epoch", "num_epochs"), ("Seed", "seed")])
def test_a_slip_of_the_pen_gets_the_key_that_was_meant(key: str, meant: str) -> None:
    assert f"Did you mean {meant}?" in refusal_of(read_training, {key: 3})


@given(st.sampled_from(TRAINING_KEYS), json_values)
def test_any_value_is_taken_as_it_is_or_refused_by_its_key(key: str, value: Any) -> None:
    _taken_or_refused(read_training, key, value)


@given(st.sampled_from(CATENORM_KEYS), json_values)
def test_any_value_of_a_method_is_taken_as_it_is_or_refused_by_its_key(
    key: str, value: Any
) -> None:
    _taken_or_refused(read_catenorm, key, value)


def _taken_or_refused(read: Any, key: str, value: Any) -> None:
    try:
        taken, message = getattr(read({key: value}), key), None
    except SettingsError as refusal:
        taken, message = None, str(refusal)
    if message is not None:
        assert WHERE in message
        assert f'"{key}' in message
    else:
        assert (list(taken) if isinstance(taken, tuple) else taken) == value
        assert isinstance(value, bool) == isinstance(taken, bool)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_epochs", 0),
        ("num_epochs", -5),
        ("num_epochs", "250"),
        ("num_epochs", 2.0),
        ("num_epochs", True),
        ("num_iterations_per_epoch", 0),
        ("num_val_iterations_per_epoch", 0),
        ("save_every", 0),
        ("initial_lr", 0),
        ("initial_lr", -0.1),
        ("initial_lr", float("nan")),
        ("initial_lr", float("inf")),
        ("seed", -1),
        ("seed", 2**31),
        ("optimizer", "sgdd"),
        ("progress_bar", 1),
        ("progress_bar", "yes"),
    ],
)
def test_wrong_training_settings_are_refused(key: str, value: Any) -> None:
    assert f'"{key}"' in refusal_of(read_training, {key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reduction", 0),
        ("plain_fraction", 1),
        ("plain_fraction", -0.1),
        ("plain_fraction", float("nan")),
        ("norm", "group"),
        ("updates", ""),
        ("prior_augmentation", 1.1),
        ("prior", "labels"),
        ("stages", "middle"),
        ("encoder_stages", "0"),
        ("encoder_stages", [0.5]),
        ("decoder_stages", None),
        ("recompute", 0),
    ],
)
def test_wrong_method_settings_are_refused(key: str, value: Any) -> None:
    assert f'"{key}' in refusal_of(read_catenorm, {key: value})


@pytest.mark.parametrize(
    ("block", "culprit"),
    [
        ({"stages": "low", "encoder_stages": [3]}, "encoder_stages"),
        ({"stages": "low", "decoder_stages": [0]}, "decoder_stages"),
        ({"prior": "previous_stage", "predict": "first"}, 'predict "first"'),
        ({"prior": "previous_stage", "prior_augmentation": 0.5}, "prior_augmentation"),
    ],
)
def test_catenorm_settings_that_exclude_each_other_are_refused(
    block: dict[str, Any], culprit: str
) -> None:
    assert culprit in refusal_of(read_catenorm, block)


def test_a_refused_choice_names_the_choices() -> None:
    message = refusal_of(read_training, {"optimizer": "adamw"})
    assert all(choice in message for choice in ("sgd", "adam", "adamw"))


@pytest.mark.parametrize("block", [3, "fast", [1], None, True])
def test_a_block_that_is_no_object_is_refused(block: Any) -> None:
    assert f'"{PLANS_KEY}"' in refusal_of(read_training, block)
    assert '"catenorm"' in refusal_of(read_catenorm, block)


@pytest.mark.parametrize("settings_class", [TrainingSettings, CateNormSettings])
def test_settings_cannot_be_changed_after_reading(settings_class: type) -> None:
    settings = settings_class()
    name = dataclasses.fields(settings)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(settings, name, 1)


@pytest.mark.parametrize("settings_class", [TrainingSettings, CateNormSettings])
def test_every_setting_is_described(settings_class: type) -> None:
    hints: Mapping[str, Any] = settings_class.__annotations__
    for field in dataclasses.fields(settings_class):
        parts = get_args(hints[field.name])
        assert any(getattr(part, "description", None) for part in parts), field.name


def test_methods_that_the_reader_names_are_known_as_well() -> None:
    block = configuration({"mine": {"strength": 2}, "num_epochs": 3})
    assert read_training_settings(block, WHERE, ["mine"]).num_epochs == 3
    with pytest.raises(SettingsError, match="Did you mean mine"):
        read_training_settings(configuration({"mien": {}}), WHERE, ["mine"])
