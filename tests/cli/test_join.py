"""``nnunet-ext join``: what it says; what it does is in tests/domains/test_joining.py."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MakeRaw = Callable[..., Path]


def test_the_new_data_set_is_described_with_the_next_command(
    cli: Callable[..., Any], make_raw: MakeRaw
) -> None:
    make_raw("Dataset001_Bern", ["a", "b"])
    raw = make_raw("Dataset002_Ulm", ["b", "c"]).parent
    make_raw("Dataset003_Rome", ["d"])
    arguments = ("--id", "9", "--name", "All", "--unlabeled", "Rome", "--link")
    outcome = cli("join", "1", "Dataset002_Ulm", *arguments)
    assert outcome.code == 0, outcome.err
    assert [" ".join(line.split()) for line in outcome.out.splitlines()] == [
        "Dataset009_All: 4 training cases",
        "domain cases",
        "Bern 2 Bern_b, a",
        "Ulm 2 Ulm_b, c",
        "Without labels, in imagesUn: 1",
        "Renamed, because several data sets have them: b is now Bern_b and 1 more",
        f"Wrote {raw / 'Dataset009_All'}",
        "Next: nnUNetv2_plan_and_preprocess -d 9 --verify_dataset_integrity",
    ]
    folder = raw / "Dataset009_All"
    assert all(path.is_symlink() for path in (folder / "imagesTr").iterdir())
    content = json.loads((folder / "dataset.json").read_text())
    assert content["domains"] == {"a": "Bern", "Bern_b": "Bern", "Ulm_b": "Ulm", "c": "Ulm"}


@pytest.mark.parametrize(("channel", "warned"), [("CT", True), ("image", False)])
def test_labelled_ct_beside_images_without_labels_is_pointed_out_before_planning(
    cli: Callable[..., Any], make_raw: MakeRaw, channel: str, warned: bool
) -> None:
    make_raw("Dataset001_Bern", ["a"], channel_names={"0": channel})
    make_raw("Dataset003_Rome", ["d"])
    outcome = cli("join", "1", "--id", "9", "--name", "All", "--unlabeled", "Rome")
    assert outcome.code == 0, outcome.err
    assert ("replace CT by another name" in outcome.out) == warned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("1", "7"), 'no data set "7"'),
        (("1", "1"), "named twice"),
        (("1", "2"), 'labels "organ" is 1 in Dataset001_Bern'),
        (("1", "--unlabeled", "7"), 'no data set "7"'),
    ],
)
def test_a_mistake_is_explained_and_nothing_is_written(
    cli: Callable[..., Any], make_raw: MakeRaw, arguments: tuple[str, ...], message: str
) -> None:
    raw = make_raw("Dataset001_Bern", ["a"]).parent
    make_raw("Dataset002_Ulm", ["b"], labels={"background": 0, "lesion": 1})
    outcome = cli("join", *arguments, "--id", "9", "--name", "All")
    assert outcome.code == 1
    assert outcome.out == ""
    assert message in outcome.err
    assert sorted(path.name for path in raw.iterdir()) == ["Dataset001_Bern", "Dataset002_Ulm"]


@pytest.mark.parametrize("number", ["0", "1000", "x"])
def test_a_number_that_nnunet_cannot_use_is_refused(
    cli: Callable[..., Any], make_raw: MakeRaw, number: str
) -> None:
    make_raw("Dataset001_Bern", ["a"])
    outcome = cli("join", "1", "--id", number, "--name", "All")
    assert outcome.code == 2
    assert "--id" in outcome.err
