"""What a cell does: which commands it runs, from where it goes on, what it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark import cell as cells
from nnunet_ext.benchmark.arms import Training
from nnunet_ext.benchmark.layout import Cell, Layout, State
from nnunet_ext.nnunet import commands

STOCK = Cell("stock", "tiny_base", 0, 0)
CATENORM = Cell("CateNorm", "tiny_base", 0, 0)
FIRST_PASS = Cell("first pass", "tiny_base", 0, 0)
TEST = Cell("stock", "tiny_base", 0, None)
LOGGED = {
    "train_losses": [1.0, 0.5],
    "val_losses": [1.0, 0.6],
    "mean_fg_dice": [0.2, 0.7],
    "epoch_start_timestamps": [0.0, 3.0],
    "epoch_end_timestamps": [2.0, 6.0],
}


class FakeNnunet:
    """Stands in for nnU-Net's commands: leaves behind the files that they would."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.environment: Mapping[str, str] = {}
        self.raise_in: dict[str, BaseException] = {}
        self.stops = False

    def __call__(
        self,
        command: Sequence[str],
        log: Path,
        variables: Mapping[str, str],
        device: str,
        usage: Path,
    ) -> None:
        name = command[0].removeprefix("nnUNetv2_")
        self.calls.append(list(command))
        self.environment = variables
        used = {"peak_memory_mib": 100.0 + len(self.calls), "memory_kind": "RAM"}
        usage.write_text(json.dumps(used))
        getattr(self, name)(command, log)

    def train(self, command: Sequence[str], log: Path) -> None:
        _, dataset, configuration, fold, _, trainer, _, plans, *_ = command
        model = Path(self.environment["nnUNet_results"], dataset)
        folder = model / f"{trainer}__{plans}__{configuration}" / f"fold_{fold}"
        folder.mkdir(parents=True, exist_ok=True)
        for file in ("dataset.json", "dataset_fingerprint.json"):
            (folder.parent / file).write_text("{}")
        log.write_text("2026-01-02 03:04:05.678901: Epoch 1 \n2026-01-02 03:04:06.7: more\n")
        if "train" in self.raise_in:
            (folder / "checkpoint_latest.pth").touch()
            raise self.raise_in["train"]
        if self.stops:
            (folder / "checkpoint_latest.pth").touch()
            return
        if "--val" not in command:
            checkpoint = {
                "network_weights": {},
                "logging": LOGGED,
                "init_args": {"configuration": configuration},
            }
            torch.save(checkpoint, folder / "checkpoint_final.pth")
        write_summary(folder / "validation")

    def predict(self, command: Sequence[str], log: Path) -> None:
        target = Path(command[command.index("-o") + 1])
        target.mkdir(parents=True, exist_ok=True)
        (target / "case_9.nii.gz").touch()
        if "predict" in self.raise_in:
            raise self.raise_in["predict"]

    def evaluate_folder(self, command: Sequence[str], log: Path) -> None:
        write_summary(Path(command[2]))

    @property
    def trained_with(self) -> list[str]:
        return [call[-1] for call in self.calls if call[0] == "nnUNetv2_train"]


def write_summary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text('{"metric_per_case": []}')


@pytest.fixture
def nnunet(monkeypatch: pytest.MonkeyPatch) -> FakeNnunet:
    fake = FakeNnunet()
    monkeypatch.setattr(commands, "run_command", fake)
    monkeypatch.setattr(cells, "measure_evaluation", lambda *_: None)
    monkeypatch.setattr(cells, "circumstances", dict)
    return fake


def run(layout: Layout, cell: Cell, **options: Any) -> str:
    cells.work(layout.root, cell.name, "cpu", **options)
    return layout.state(cell).status


def test_a_finished_training_leaves_state_curves_and_usage(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    layout = make_layout()
    assert run(layout, STOCK) == "done"
    state = layout.state(STOCK)
    assert (state.epoch, state.epochs) == (2, 2)
    assert (state.peak_memory_mib, state.memory_kind) == (101.0, "RAM")
    assert state.commands == [
        "nnUNetv2_train Dataset777_Tiny tiny_base_stock_seed0 0 -tr nnUNetTrainer -p TinyPlans "
        "-device cpu"
    ]
    curves = (layout.folder(STOCK) / "curves.csv").read_text().splitlines()
    assert curves[0] == "epoch,train_loss,val_loss,pseudo_dice,seconds"
    assert curves[2] == "1,0.5,0.6,0.7,3.0"
    assert nnunet.environment["nnUNet_results"] == str(layout.results)


def test_a_training_that_was_stopped_goes_on_when_asked_again(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    layout = make_layout()
    nnunet.stops = True
    assert run(layout, STOCK) == "failed"
    assert "to continue it" in layout.state(STOCK).reason
    nnunet.stops = False
    assert run(layout, STOCK) == "done"
    assert nnunet.trained_with[-1] == "--c"


def test_what_is_done_is_not_done_again(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    layout = make_layout()
    run(layout, STOCK)
    run(layout, STOCK)
    assert len(nnunet.calls) == 1


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(-1)], ids=["user", "cluster"])
def test_an_interrupted_training_goes_on_with_c(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet, ending: BaseException
) -> None:
    layout = make_layout()
    nnunet.raise_in["train"] = ending
    with pytest.raises(type(ending)):
        run(layout, STOCK)
    assert layout.state(STOCK).status == "missing"
    nnunet.raise_in.clear()
    assert run(layout, STOCK) == "done"
    assert nnunet.trained_with == ["cpu", "--c"]


def test_a_lost_or_damaged_validation_is_repeated_without_training(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    layout = make_layout()
    run(layout, STOCK)
    summary = layout.evaluations(STOCK, "nnUNetTrainer")["clean"] / "summary.json"
    summary.write_text('{"metric_per_ca')
    assert run(layout, STOCK) == "done"
    assert nnunet.trained_with == ["cpu", "--val"]
    assert json.loads(summary.read_text()) == {"metric_per_case": []}


def test_curves_that_an_interruption_has_prevented_are_made_up_for(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    layout = make_layout()
    run(layout, STOCK)
    curves = layout.folder(STOCK) / "curves.csv"
    curves.unlink()
    layout.save(STOCK, State("missing"))
    assert run(layout, STOCK) == "done"
    assert curves.exists()
    assert len(nnunet.calls) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UserError("nnUNetv2_train failed: two domains are needed"), "two domains are needed"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_a_failure_is_written_down_with_its_reason(
    make_layout: Callable[..., Layout],
    nnunet: FakeNnunet,
    error: Exception,
    reason: str,
) -> None:
    layout = make_layout()
    nnunet.raise_in["train"] = error
    assert run(layout, STOCK) == "failed"
    assert reason in layout.state(STOCK).reason


def test_an_arm_whose_trainer_does_not_exist_fails_without_a_command(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    layout = make_layout({"stock": Training("Nonsense", problem="There is no trainer Nonsense.")})
    assert run(layout, STOCK) == "failed"
    assert layout.state(STOCK).reason == "There is no trainer Nonsense."
    assert nnunet.calls == []


def test_weights_of_another_arm_are_evaluated_under_the_arms_own_plans(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    layout = make_layout()
    (layout.dataset / "TinyPlans.json").write_text('{"plans": "with all configurations"}')
    run(layout, CATENORM)
    assert run(layout, FIRST_PASS) == "done"
    assert nnunet.trained_with == ["cpu", "--val"]
    model = layout.model(FIRST_PASS, "CateNormTrainer")
    assert model != layout.model(CATENORM, "CateNormTrainer")
    assert "all configurations" in (model / "plans.json").read_text()
    weights = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    # what nnUNetv2_predict takes settings from
    assert weights["init_args"]["configuration"] == FIRST_PASS.trained_configuration


def test_a_training_begins_with_the_weights_of_another_arm_once(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    arms = {
        "stock": {"trainer": "nnUNetTrainer"},
        "CateNorm": {"trainer": "CateNormTrainer", "begins_with": "stock"},
    }
    layout = make_layout(arms=arms)
    assert layout.needed_by(CATENORM) == [STOCK]
    run(layout, STOCK)
    nnunet.raise_in["train"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(layout, CATENORM)
    nnunet.raise_in.clear()
    assert run(layout, CATENORM) == "done"
    weights = layout.model(STOCK, "nnUNetTrainer") / "fold_0" / "checkpoint_final.pth"
    assert nnunet.calls[1][-2:] == ["-pretrained_weights", str(weights)]
    assert weights.exists()
    assert nnunet.calls[2][-1] == "--c"
    assert "-pretrained_weights" not in nnunet.calls[2]


def test_degraded_images_are_predicted_by_the_fold_that_held_them_out(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    layout = make_layout(degradations={"blur": {"blur": 1.0}})
    assert run(layout, STOCK) == "done"
    predict, evaluate = nnunet.calls[1:]
    assert predict[predict.index("-i") + 1] == str(layout.degraded / "blur" / "fold_0")
    assert predict[predict.index("-f") + 1] == "0"
    assert evaluate[1] == str(layout.truth)
    assert (layout.evaluations(STOCK, "nnUNetTrainer")["blur"] / "summary.json").exists()


def test_the_test_set_is_predicted_by_all_folds_together_and_once(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    layout = make_layout(test=True, folds=[0, 1])
    assert run(layout, TEST) == "done"
    assert run(layout, TEST) == "done"
    (predict,) = nnunet.calls
    assert predict[predict.index("-f") + 1 : predict.index("-f") + 3] == ["0", "1"]


def test_an_interrupted_prediction_does_not_trust_its_newest_file(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    layout = make_layout(test=True)
    target = layout.evaluations(TEST, "nnUNetTrainer")["test"]
    nnunet.raise_in["predict"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(layout, TEST)
    (target / "case_9.nii.gz").write_text("half")
    nnunet.raise_in.clear()
    assert run(layout, TEST) == "done"
    assert (target / "case_9.nii.gz").read_text() == ""


def test_predictions_by_fewer_folds_are_made_again_when_folds_are_added(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    run(make_layout(test=True), TEST)
    assert run(make_layout(test=True, folds=[0, 1]), TEST) == "done"
    assert len(nnunet.calls) == 2


def test_a_cell_that_another_process_works_on_is_left_alone(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    layout = make_layout()
    with layout.cell_lock(STOCK):
        run(layout, STOCK)
    assert nnunet.calls == []


def test_a_cell_that_there_is_not_is_named_with_those_that_there_are(
    make_layout: Callable[..., Layout],
) -> None:
    with pytest.raises(UserError, match=r"no cell tiny_fold0; there are: tiny_base_stock_seed0_f"):
        cells.work(make_layout().root, "tiny_fold0", "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [(STOCK.name, "There is no trainer Nonsense."), ("tiny", "has no cell tiny; there are: tiny_")],
)
def test_a_cell_is_a_command_whose_exit_code_tells(
    make_layout: Callable[..., Layout], name: str, message: str
) -> None:
    layout = make_layout({"stock": Training("Nonsense", problem="There is no trainer Nonsense.")})
    command = [sys.executable, "-m", "nnunet_ext.benchmark.cell", str(layout.root), name, "cpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cell_on_a_gpu_sees_only_that_one(
    make_layout: Callable[..., Layout], nnunet: FakeNnunet
) -> None:
    run(make_layout(), STOCK, gpu="3")
    assert nnunet.environment["CUDA_VISIBLE_DEVICES"] == "3"
