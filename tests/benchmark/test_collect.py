"""What finished cells have left behind becomes tables, whatever state it is in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark import collect as collecting
from nnunet_ext.benchmark.collect import collect, measure_evaluation, read_summary
from nnunet_ext.benchmark.layout import Cell, Layout, State
from nnunet_ext.benchmark.results import without_images
from tests.tiny import CASES, PLANS, World

CASE = CASES[3]
LABELS = ("1", "2")


@pytest.fixture
def layout(make_world: Callable[..., World], make_layout: Callable[..., Layout]) -> Layout:
    """A benchmark whose stock arm has predicted one case, perfectly."""
    world = make_world()
    raw = world.write_raw()
    layout = make_layout(subject=r"_(\d)")
    dataset_json = world.task.dataset_json | {"domains": {CASE: "site A"}}
    (layout.dataset / "dataset.json").write_text(json.dumps(dataset_json))
    (layout.dataset / f"{PLANS}.json").write_text(json.dumps(world.plans()))
    cell = Cell("stock", "tiny_base", 0, 0)
    folder = layout.evaluations(cell, "nnUNetTrainer")["clean"]
    folder.mkdir(parents=True)
    truth = raw / "labelsTr" / f"{CASE}.nii.gz"
    (folder / truth.name).write_bytes(truth.read_bytes())
    # the folder has been moved since nnU-Net wrote these paths
    write_summary(folder, truth, Path("elsewhere", truth.name))
    command = f"nnUNetv2_predict -i {world.root}/raw/images -o {layout.root}/out"
    layout.save(cell, State("done", seconds=9.0, commands=[command]))
    (layout.folder(cell) / "curves.csv").write_text(
        "epoch,train_loss,val_loss,pseudo_dice,seconds\n0,1,1,0.5,4\n1,0.5,0.6,0.7,2\n"
    )
    return layout


@pytest.mark.parametrize(("trained", "seen"), [(["site A"], "seen"), (["site B"], "unseen")])
def test_scores_say_whether_training_saw_the_domain(
    layout: Layout, trained: list[str], seen: str
) -> None:
    prepared = json.loads(layout.prepared.read_text()) | {"domains": {"0": trained}}
    layout.prepared.write_text(json.dumps(prepared))
    assert set(collect(layout).scores["seen"]) == {seen}


def write_summary(folder: Path, truth: Path, prediction: Path, dice: Any = 1.0) -> None:
    metrics = {label: {"Dice": dice} for label in LABELS}
    files = {"reference_file": str(truth), "prediction_file": str(prediction)}
    content = {"metric_per_case": [{"metrics": metrics, **files}]}
    (folder / "summary.json").write_text(json.dumps(content))


def test_scores_name_case_domain_subject_and_the_summary_they_come_from(layout: Layout) -> None:
    results = collect(layout)
    assert list(results.scores["label"]) == list(LABELS)
    row = results.scores.iloc[0]
    assert (row["case"], row["domain"], row["subject"]) == (CASE, "site A", "3")
    assert row["seen"] == ""  # nothing is known of the training cases
    assert (row["dice"], row["nsd"], row["hd95"], row["assd"]) == (1, 1, 0, 0)
    assert results.scores[["dice", "nsd", "hd95", "assd"]].dtypes.eq(float).all()
    assert (layout.root / row["summary"]).exists()
    assert results.labels == {"1": "organ", "2": "lesion"}
    assert results.problems == []


def test_cells_that_are_not_finished_are_there_too(layout: Layout) -> None:
    layout.save(Cell("CateNorm", "tiny_base", 0, 0), State("failed", "no luck"))
    layout.save(
        Cell("first pass", "tiny_base", 0, 0), State("running")
    )  # but nobody holds its lock
    cells = collect(layout).cells
    assert list(cells["status"]) == ["done", "failed", "missing"]
    assert cells.iloc[1]["reason"] == "no luck"
    assert (cells.iloc[0]["epochs"], cells.iloc[0]["seconds_per_epoch"]) == (2, 3.0)


def test_commands_name_folders_not_machines(layout: Layout) -> None:
    command = collect(layout).cells.iloc[0]["command"]
    assert command == "nnUNetv2_predict -i $nnUNet_raw/images -o $BENCHMARK/out"


def test_a_damaged_summary_is_a_problem_of_its_own(layout: Layout) -> None:
    (summary,) = layout.root.rglob("summary.json")
    summary.write_text('{"metric_per_case": [{"metrics"')
    results = collect(layout)
    assert results.scores.empty
    (problem,) = results.problems
    assert str(summary) in problem
    assert "benchmark run" in problem


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"metric_per_case": [{}]}', '{"metric_per_case": [{"metrics": {"1": {}}}]}'],
)
def test_everything_that_is_no_summary_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "summary.json"
    path.write_text(content)
    with pytest.raises(UserError, match="damaged"):
        read_summary(path)


@pytest.mark.parametrize("dice", [None, math.nan])
def test_a_label_that_is_nowhere_has_no_dice(layout: Layout, dice: Any) -> None:
    (summary,) = layout.root.rglob("summary.json")
    truth = Path(json.loads(summary.read_text())["metric_per_case"][0]["reference_file"])
    write_summary(summary.parent, truth, truth, dice)
    assert collect(layout).scores["dice"].isna().all()


def test_images_are_measured_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    (summary,) = layout.root.rglob("summary.json")
    first = measure_evaluation(summary.parent, layout)
    monkeypatch.setattr(collecting, "measure_case", None)
    assert measure_evaluation(summary.parent, layout).equals(first)


def test_a_prediction_of_another_shape_is_named(layout: Layout) -> None:
    import SimpleITK as sitk  # noqa: N813

    (summary,) = layout.root.rglob("summary.json")
    sitk.WriteImage(sitk.Image(3, 3, 3, sitk.sitkUInt8), summary.parent / f"{CASE}.nii.gz")
    (problem,) = collect(layout).problems
    assert f"{CASE}.nii.gz does not match" in problem


def test_another_baseline_must_be_an_arm(layout: Layout) -> None:
    assert collecting.gather(layout.root, "CateNorm")[0].baseline == "CateNorm"
    with pytest.raises(UserError, match="There are: stock, CateNorm, first pass"):
        collecting.gather(layout.root, "other")


def test_published_results_show_and_locate_no_image(layout: Layout) -> None:
    published = without_images(collect(layout))
    assert str(layout.root.parent) not in published.scores.to_csv() + published.cells.to_csv()
