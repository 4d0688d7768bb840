"""A training that ends early, and well, because somebody has asked for it."""

from pathlib import Path
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext._common.attributes import replaced
from nnunet_ext.trainers.distributed import gather

STOP = "stop"
"""A file of this name in the fold's folder ends the training after the epoch."""


class StoppableTrainer(nnUNetTrainer):
    """Looks for a file ``stop`` at the end of each epoch."""

    def on_epoch_end(self) -> None:
        """Where a stop is asked for, save ``checkpoint_latest.pth`` and leave with exit code 0.

        Raises:
            SystemExit: To leave nnU-Net's loop without the validation that would follow it. Where
                several processes train, the first one looks, and all leave.
        """
        super().on_epoch_end()
        request = Path(self.output_folder, STOP)
        if not gather(self.local_rank == 0 and request.exists())[0]:
            return
        with replaced(self, current_epoch=self.current_epoch - 1):  # the one that is saved
            self.save_checkpoint(str(Path(self.output_folder, "checkpoint_latest.pth")))
        for loader in self.loaders():
            finish(loader)
        if self.local_rank == 0:
            request.unlink()
        self.print_to_log_file(
            f"Stopped after {self.current_epoch} of {self.num_epochs} epochs because of the file "
            f"{request}, which is now removed. Continue with the same command and --c."
        )
        raise SystemExit(0)

    def loaders(self) -> list[Any]:
        """All loaders of batches that this training has begun."""
        return [self.dataloader_train, self.dataloader_val]


def finish(loader: Any) -> None:
    """End the workers of a loader that has some."""
    if hasattr(loader, "_finish"):
        loader._finish()
