"""Full disks, locks, and what killed trainings have left behind."""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nnunet_ext._common.errors import CheckpointError, UserError
from nnunet_ext._common.files import alone
from nnunet_ext.trainers import checkpoint
from nnunet_ext.trainers.resuming import LOCK
from tests import contract
from tests.tiny import World

MakeWorld = Callable[..., World]


@pytest.fixture(autouse=True)
def _no_progress_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    contract.without_progress_plot(monkeypatch)


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let writing fail as a quota or a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("former", [True, False])
def test_a_disk_without_room_for_a_checkpoint_is_named_with_what_it_needs(
    tmp_path: Path, former: bool
) -> None:
    path = tmp_path / "checkpoint_latest.pth"
    if former:
        checkpoint.write({"network_weights": torch.zeros(1)}, path)
    large = {"network_weights": torch.zeros(1_000_000)}
    with no_file_above(100_000), pytest.raises(CheckpointError) as refusal:
        checkpoint.write(large, path)
    message = str(refusal.value)
    assert f"Cannot write the checkpoint {path}: File too large. It needs 4.0 MB" in message
    assert ("The previous one is kept" in message) == former
    assert [each.name for each in tmp_path.iterdir()] == [path.name] * former
    if former:
        assert checkpoint.read(path)["network_weights"].shape == (1,)


def test_a_training_on_a_full_disk_goes_on_from_its_last_checkpoint(make_world: MakeWorld) -> None:
    world = make_world(dim=2)
    settings = {"num_epochs": 3, "save_every": 1}
    whole = world.trainer("CateNormTrainer", settings)
    whole.run_training()
    final = Path(whole.output_folder, "checkpoint_final.pth")
    expected = contract.load(final)["network_weights"]
    final.unlink()

    trainer = world.trainer("CateNormTrainer", settings)
    end_of_epoch = trainer.on_epoch_end

    def fill_up() -> None:
        # enough for the log and pictures
        room = final.with_name("checkpoint_best.pth").stat().st_size - 1
        with no_file_above(room if trainer.current_epoch == 1 else resource.RLIM_INFINITY):
            end_of_epoch()

    trainer.on_epoch_end = fill_up
    with pytest.raises(CheckpointError, match=r"checkpoint_\w+\.pth: File too large"):
        trainer.run_training()
    trainer = world.trainer("CateNormTrainer", settings, continue_training=True)
    trainer.load_checkpoint(str(final.with_name("checkpoint_latest.pth")))
    assert trainer.current_epoch == 1
    trainer.run_training()
    actual = contract.load(final)["network_weights"]
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


# ------------------------------------------------------------------------------ several processes


def test_a_fold_that_another_process_trains_is_refused(make_world: MakeWorld) -> None:
    trainer = make_world(dim=2).trainer("ExtensionTrainer", {"num_epochs": 1})
    fold = Path(trainer.output_folder)
    with alone(fold / LOCK, ""), pytest.raises(UserError, match=f"training is at work in {fold}"):
        trainer.run_training()
    trainer.run_training()
    assert (fold / "checkpoint_final.pth").exists()


def test_a_process_that_is_killed_gives_its_lock_back(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from nnunet_ext._common.files import"
        " alone\nwith alone(Path(sys.argv[1]), ''): os.kill(os.getpid(), signal.SIGKILL)"
    )
    lock = tmp_path / LOCK
    killed = subprocess.run([sys.executable, "-c", code, str(lock)], check=False)
    assert killed.returncode == -9
    assert lock.exists()
    with alone(lock, "still held"):
        pass


def test_what_a_killed_training_was_writing_is_cleared_when_it_goes_on(
    make_world: MakeWorld,
) -> None:
    trainer = make_world(dim=2).trainer("ExtensionTrainer", {"num_epochs": 1})
    fold = Path(trainer.output_folder)
    left = fold / ".checkpoint_latest.pth.x1y2.partial"
    left.mkdir()
    (left / "checkpoint_latest.pth").write_bytes(b"half")
    other = fold / "mine.partial"
    other.mkdir()
    trainer.run_training()
    assert not left.exists()
    assert other.exists()
