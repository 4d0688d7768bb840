"""The order of the demo's steps, resuming, and what the plans are told."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nnunet_ext._common.errors import UserError
from nnunet_ext.demo.pipeline import CONFIGURATION, PLANS, Pipeline
from nnunet_ext.demo.trainers import TrainerChoice, choose_trainer
from nnunet_ext.demo.workspace import Parameters, Workspace
from nnunet_ext.settings import TrainingSettings, read_training_settings

PARAMETERS = Parameters("CateNormTrainer", epochs=2, iterations=3, cases=5)
CHOICE = TrainerChoice("CateNormTrainer", 2, reads_settings=True)


class FakeNnunet:
    """Stands in for nnU-Net's commands: leaves behind the files that they would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[list[str]] = []
        self.break_at: str | None = None
        self.before_break: Callable[[], None] = lambda: None

    @property
    def names(self) -> list[str]:
        return [call[0].removeprefix("nnUNetv2_") for call in self.calls]

    @property
    def fold(self) -> Path:
        model = f"CateNormTrainer__{PLANS}__{CONFIGURATION}"
        return self.root / "nnUNet_results" / "Dataset999_Phantom" / model / "fold_0"

    def __call__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        read_line: Callable[[str], None],
    ) -> None:
        self.calls.append(list(command))
        name = self.names[-1]
        if name == self.break_at:
            self.before_break()
            raise KeyboardInterrupt
        if name == "convert_MSD_dataset":
            self._write("nnUNet_raw/Dataset999_Phantom/dataset.json", {})
        elif name == "plan_and_preprocess":
            plans = {"configurations": {"3d_fullres": {"batch_size": 2}}}
            self._write(f"nnUNet_preprocessed/Dataset999_Phantom/{PLANS}.json", plans)
        elif name == "train":
            self._write(self.fold / "checkpoint_final.pth", {})
            self._write(self.fold / "validation" / "summary.json", {})
        elif name == "predict":
            self._write("predictions/siteA_101.nii.gz", {})
        elif name == "evaluate_folder":
            self._write("predictions/summary.json", {})

    def _write(self, path: str | Path, content: object) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content))


@pytest.fixture
def nnunet(tmp_path: Path) -> FakeNnunet:
    return FakeNnunet(tmp_path / "demo")


def run(nnunet: FakeNnunet, parameters: Parameters = PARAMETERS) -> Pipeline:
    workspace = Workspace(nnunet.root, parameters)
    pipeline = Pipeline(parameters, workspace, CHOICE, "cpu", Console(quiet=True), nnunet)
    pipeline.run()
    return pipeline


ALL = ["convert_MSD_dataset", "plan_and_preprocess", "train", "predict", "evaluate_folder"]


def test_steps_run_in_order_and_only_once(nnunet: FakeNnunet) -> None:
    run(nnunet)
    assert nnunet.names == ALL
    run(nnunet)
    assert nnunet.names == ALL


@pytest.mark.parametrize("interrupted", ALL)
def test_an_interrupted_demo_goes_on_with_the_interrupted_step(
    nnunet: FakeNnunet, interrupted: str
) -> None:
    nnunet.break_at = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(nnunet)
    nnunet.break_at, nnunet.calls = None, []
    run(nnunet)
    assert nnunet.names == ALL[ALL.index(interrupted) :]


def test_a_lost_result_is_made_again_with_all_that_follows(nnunet: FakeNnunet) -> None:
    run(nnunet)
    nnunet.calls = []
    (nnunet.root / "nnUNet_preprocessed" / "Dataset999_Phantom" / f"{PLANS}.json").unlink()
    run(nnunet)
    assert nnunet.names == ALL[1:]


def test_training_starts_afresh_without_a_checkpoint(nnunet: FakeNnunet) -> None:
    run(nnunet)
    assert not {"--c", "--val"} & set(nnunet.calls[ALL.index("train")])


@pytest.mark.parametrize(
    ("checkpoint", "option"),
    [
        ("checkpoint_latest.pth", "--c"),
        ("checkpoint_best.pth", "--c"),
        ("checkpoint_final.pth", "--val"),
    ],
)
def test_interrupted_training_continues_from_its_checkpoint(
    nnunet: FakeNnunet, checkpoint: str, option: str
) -> None:
    nnunet.break_at = "train"
    nnunet.before_break = lambda: nnunet._write(nnunet.fold / checkpoint, {})
    with pytest.raises(KeyboardInterrupt):
        run(nnunet)
    nnunet.break_at = None
    run(nnunet)
    assert option in nnunet.calls[-3]


def test_half_written_conversion_is_removed_before_the_next(nnunet: FakeNnunet) -> None:
    leftover = nnunet.root / "nnUNet_raw" / "Dataset999_Phantom" / "imagesTr" / "half.nii.gz"
    nnunet.break_at = "convert_MSD_dataset"
    nnunet.before_break = lambda: nnunet._write(leftover, {})
    with pytest.raises(KeyboardInterrupt):
        run(nnunet)
    assert leftover.exists()
    nnunet.break_at = None
    run(nnunet)
    assert not leftover.exists()


def test_half_written_prediction_is_predicted_again(nnunet: FakeNnunet) -> None:
    leftover = nnunet.root / "predictions" / "siteB_101.nii.gz"
    nnunet.break_at = "predict"
    nnunet.before_break = lambda: nnunet._write(leftover, {})
    with pytest.raises(KeyboardInterrupt):
        run(nnunet)
    nnunet.break_at = None
    run(nnunet)
    assert not leftover.exists()  # the fake does not write it, nnU-Net would


def test_other_parameters_in_the_same_folder_are_refused(nnunet: FakeNnunet) -> None:
    run(nnunet)
    with pytest.raises(UserError, match=r"other parameters: epochs 2, now 9\. .*--out"):
        Workspace(nnunet.root, Parameters("CateNormTrainer", epochs=9, iterations=3, cases=5))


def test_a_folder_with_other_contents_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds no demo"):
        Workspace(tmp_path, PARAMETERS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_archive_put_by_hand_does_not_make_the_folder_foreign(tmp_path: Path) -> None:
    (tmp_path / "Task04_Hippocampus.tar").touch()
    Workspace(tmp_path, PARAMETERS)
    assert (tmp_path / "demo.json").is_file()


@pytest.mark.parametrize("content", ["{", "[]", '{"parameters": {"speed": 1}}'])
def test_a_broken_record_is_explained(tmp_path: Path, content: str) -> None:
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(UserError, match=r"demo\.json cannot be read"):
        Workspace(tmp_path, PARAMETERS)


def test_the_plans_get_a_configuration_that_our_trainers_understand(nnunet: FakeNnunet) -> None:
    pipeline = run(nnunet)
    plans: dict[str, Any] = json.loads(pipeline.plans_file.read_text())
    configuration = plans["configurations"][CONFIGURATION]
    assert configuration["inherits_from"] == "3d_fullres"
    settings = read_training_settings(configuration)
    assert isinstance(settings, TrainingSettings)
    assert (settings.num_epochs, settings.num_iterations_per_epoch) == (2, 3)


def test_data_that_are_not_3d_are_explained(nnunet: FakeNnunet) -> None:
    pipeline = run(nnunet)
    pipeline.plans_file.write_text(json.dumps({"configurations": {"2d": {}}}))
    with pytest.raises(UserError, match="needs 3D images"):
        pipeline.add_configuration()


# -------------------------------------------------------------------------------------- trainers


@pytest.mark.parametrize(
    ("name", "epochs", "expected"),
    [
        ("CateNormTrainer", None, TrainerChoice("CateNormTrainer", 12, True)),
        ("CateNormTrainer", 3, TrainerChoice("CateNormTrainer", 3, True)),
        ("CateNormTrainer_7epochs", None, TrainerChoice("CateNormTrainer_7epochs", 7, True)),
        ("nnUNetTrainer", 5, TrainerChoice("nnUNetTrainer_5epochs", 5, False)),
        ("nnUNetTrainer", 1, TrainerChoice("nnUNetTrainer_1epoch", 1, False)),
        ("nnUNetTrainer_10epochs", None, TrainerChoice("nnUNetTrainer_10epochs", 10, False)),
        ("nnUNetTrainer", 1000, TrainerChoice("nnUNetTrainer", 1000, False)),
        ("ExtensionTrainerDA5", 3, TrainerChoice("ExtensionTrainerDA5", 3, True)),
    ],
)
def test_trainer_of_the_wished_length_is_found(
    name: str, epochs: int | None, expected: TrainerChoice
) -> None:
    assert choose_trainer(name, epochs, default_epochs=12) == expected


@pytest.mark.parametrize(
    ("name", "epochs", "message"),
    [
        ("CateNormTrianer", None, "Did you mean CateNormTrainer"),
        ("nnUNetTrainer", 7, "for these numbers of epochs: 1, 5, 10"),
        ("nnUNetTrainer", None, "cannot be told how long"),
        ("CateNormTrainer_7epochs", 8, "says 7 epochs, but --epochs is 8"),
    ],
)
def test_trainer_that_does_not_exist_is_explained(
    name: str, epochs: int | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        choose_trainer(name, epochs, default_epochs=12)


def test_trainers_in_the_users_folders_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("class MyTrainer(nnUNetTrainer):\n    pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert choose_trainer("MyTrainer", None, 12) == TrainerChoice("MyTrainer", None, False)
