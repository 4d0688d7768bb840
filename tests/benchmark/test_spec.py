"""The file that says what a benchmark is: read, written, refused, added to."""

import json
from pathlib import Path
from typing import Any

import pytest

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark import spec
from nnunet_ext.benchmark.degradation import Degradation

CONTENT: dict[str, Any] = {
    "dataset": "Dataset777_Tiny",
    "arms": {
        "stock": {"trainer": "nnUNetTrainer"},
        "CateNorm, pass 2": {"trainer": "CateNormTrainer", "settings": {"catenorm": {}}},
        "CateNorm, pass 1": {
            "trainer": "CateNormTrainer",
            "weights_of": "CateNorm, pass 2",
            "settings": {"catenorm": {"predict": "first"}},
        },
    },
    "folds": [0, 1],
    "splits": [{"validation": "a.*"}, {"validation": "b.*", "training": "a.*"}],
    "degradations": {"blur": {"blur": 2.0}},
    "subject": r"_(\d+)$",
}


def make(**changes: Any) -> spec.Benchmark:
    content = {key: value for key, value in {**CONTENT, **changes}.items() if value is not None}
    return spec.from_content(content, "test")


def test_what_is_written_is_what_was_read(tmp_path: Path) -> None:
    benchmark = make()
    spec.claim(tmp_path / "new", benchmark)
    assert spec.read(tmp_path / "new") == benchmark
    written = json.loads((tmp_path / "new" / spec.FILE_NAME).read_text())
    assert written == CONTENT  # nothing that stands at its default
    assert benchmark.degradations["blur"] == Degradation(blur=2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {}}, "arms"),
        ({"dataset": "4"}, 'dataset "4" must be a full name, such as Dataset004_Hippocampus'),
        ({"dataset": "Dataset001_a/b"}, "must be a full name"),
        ({"folds": []}, "folds"),
        ({"seeds": 0}, "seeds"),
        ({"trainers": ["a"]}, "trainers is unknown. Allowed: arms, baseline"),
        ({"degradation": {}}, "degradation is unknown. Did you mean degradations?"),
        ({"arms": {"a": {"trainr": "T"}}}, "arms.a.trainr is unknown. Did you mean trainer?"),
        ({"splits": [{"val": "a"}]}, "splits.0.val is unknown. Did you mean validation?"),
        ({"label_noise": {"drop": 1}}, "label_noise.drop is unknown. Did you mean drop_"),
        ({"degradations": {"blur": {"blurr": 1.0}}}, "blurr is unknown. Did you mean blur?"),
        ({"plan_changes": {"patch": [8, 8]}}, "patch is unknown. Did you mean patch_size?"),
        ({"folds": [2]}, 'no fold 2: "splits" has the folds 0 1. Say which to train'),
        ({"folds": None}, "no fold 4"),
        ({"datasets": ["Dataset778_Tiny"]}, 'either "dataset" or "datasets"'),
        ({"dataset": ""}, 'either "dataset" or "datasets"'),
        ({"dataset": "", "datasets": ["Dataset778_Tiny", "778"]}, 'dataset "778" must be a full'),
        ({"dataset": "", "datasets": ["Dataset778_Tiny"] * 2}, "names one twice"),
        ({"margin": -0.1}, "greater than or equal to 0"),
        ({"baseline": "other"}, 'baseline "other" is none of the arms'),
        ({"settings": {"epochs": 3}}, 'unknown setting "epochs"'),
        ({"settings": {"seed": 3}}, "must not hold a seed"),
        ({"arms": {"a": {"trainer": "T", "settings": {"seed": 1}}}}, "must not hold a seed"),
        ({"arms": {"a b": {"trainer": "T"}, "A-b": {"trainer": "T"}}}, "would share a folder"),
        ({"arms": {"?!": {"trainer": "T"}}}, "letters or digits"),
        ({"arms": {"a": {"trainer": "T", "weights_of": "b"}}}, "weights_of must name an arm"),
        ({"arms": {"a": {"trainer": "T", "weights_of": "a"}}}, "weights_of must name an arm"),
        (
            {"arms": {"a": {"trainer": "T", "weights_of": "b"}, "b": {"trainer": "U"}}},
            'arm "a" must have trainer and plans of "b"',
        ),
        ({"arms": {"a": {"trainer": "T", "begins_with": "a"}}}, "begins_with must name an arm"),
        (
            {
                "arms": {
                    "a": {"trainer": "T", "begins_with": "b"},
                    "b": {"trainer": "U", "plans": "P"},
                }
            },
            'arm "a" must be trained, with the plans of "b"',
        ),
        ({"splits": [{"validation": "("}], "folds": [0]}, "not a regular expression"),
        ({"subject": "abc"}, "exactly one group"),
        ({"degradations": {"very blurred": {"blur": 2.0}}}, "only letters"),
        ({"degradations": {"blur": {"blur": -1.0}}}, "greater than or equal to 0"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make(**changes)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["Dataset004_Hippocampus", "Dataset010_My-Data.2"])
def test_every_name_that_join_gives_can_be_benchmarked(name: str) -> None:
    assert make(dataset=name).dataset == name


def test_settings_of_an_arm_add_to_those_of_all() -> None:
    arms = {"a": {"trainer": "T", "settings": {"catenorm": {"norm": "batch"}}}}
    shared = {"num_epochs": 3, "catenorm": {"reduction": 4}}
    benchmark = make(arms=arms, settings=shared)
    expected = {"num_epochs": 3, "catenorm": {"reduction": 4, "norm": "batch"}}
    assert benchmark.settings_of("a") == expected


def test_cases_belong_to_subjects() -> None:
    benchmark = make()
    assert benchmark.subject_of("bSSFP_07") == benchmark.subject_of("LGE_07") == "07"
    assert benchmark.subject_of("other") == "other"
    assert make(subject=None).subject_of("LGE_07") == "LGE_07"


def test_several_data_sets_are_a_benchmark_each() -> None:
    names = ("Dataset777_Tiny", "Dataset778_Small")
    several = make(dataset=None, datasets=list(names), margin=0.02)
    assert spec.one_by_one(several) == [make(dataset=name, margin=0.02) for name in names]
    assert spec.one_by_one(make()) == [make()]


def test_a_benchmark_may_grow(tmp_path: Path) -> None:
    spec.claim(tmp_path, make())
    arms = CONTENT["arms"] | {"new": {"trainer": "TopKSigmaTrainer"}}
    noise = {"noise": {"noise": 1.0}}
    grown = make(arms=arms, seeds=3, degradations=noise, baseline="new", margin=0.01)
    spec.claim(tmp_path, grown)
    assert spec.read(tmp_path) == grown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plans": "CompactPlans"}, 'plans was "nnUNetPlans", now "CompactPlans"'),
        ({"arms": {"stock": {"trainer": "CateNormTrainer"}}}, 'arms "stock"'),
        ({"degradations": {"blur": {"blur": 3.0}}}, 'degradations "blur"'),
        ({"settings": {"num_epochs": 3}}, "settings"),
    ],
)
def test_two_benchmarks_in_one_folder_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    spec.claim(tmp_path, make())
    with pytest.raises(UserError, match="holds another benchmark") as error:
        spec.claim(tmp_path, make(**changes))
    assert message in str(error.value)
    assert spec.read(tmp_path) == make()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds no benchmark"):
        spec.claim(tmp_path, make())


@pytest.mark.parametrize("content", ["{", "[]", '"x"', "\xff"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "experiment.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"experiment\.json"):
        spec.read(path)
