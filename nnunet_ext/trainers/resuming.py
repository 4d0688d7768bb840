"""Checkpoints: what nnU-Net saves and, under a key of our own, what it does not know."""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_ext import __version__
from nnunet_ext._common.files import alone, clear_partial
from nnunet_ext.settings import PLANS_KEY, decisive, retired
from nnunet_ext.trainers import checkpoint as checkpoints
from nnunet_ext.trainers.distributed import unwrap

LOCK = ".training.lock"
"""In the folder of a fold, held by the process that trains it."""


class ResumableTrainer(nnUNetTrainer):
    """Saves and restores settings, phases, records and auxiliary networks beside the network."""

    def run_training(self) -> None:
        """Train, unless somebody else trains the same fold just now.

        Raises:
            UserError: If another process does.
        """
        if self.local_rank != 0:
            super().run_training()
            return
        folder = Path(self.output_folder)
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / LOCK, f"Another training is at work in {folder}."):
            clear_partial(folder / "*")
            super().run_training()

    def save_checkpoint(self, filename: str) -> None:
        """Save what nnU-Net saves and, under a key of our own, what a recipe needs to go on."""
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)  # nnU-Net decides what is saved, and whether
        if buffer.tell():
            buffer.seek(0)
            checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
            del buffer
            checkpoint["_best_ema"] = self._best_ema_of_all_epochs()
            checkpoint[checkpoints.EXTENSION_KEY] = self._extension_state()
            checkpoints.write(checkpoint, filename)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Load a checkpoint of ours or of stock nnU-Net.

        Raises:
            CheckpointError: If it cannot be read, or was made with other settings.
        """
        state = checkpoints.read(filename_or_checkpoint).get(checkpoints.EXTENSION_KEY)
        if state is not None:
            self._accept(state, filename_or_checkpoint)
        # nnU-Net 2.8 fails if handed the dict that has just been read, so the file is read again
        super().load_checkpoint(filename_or_checkpoint)
        if state is None:
            self.phases_begun = self.phases_at(self.current_epoch, self.num_epochs)
        else:
            self._continue_from(state)

    def _accept(self, state: dict[str, Any], filename: str) -> None:
        """Look at the state in a checkpoint before anything is loaded; raise if it does not fit."""
        current = {
            method: {**retired(settings), **decisive(settings)}
            for method, settings in self.settings.items()
        }
        current[PLANS_KEY] = {"optimizer": self.training_settings.optimizer}
        stored = {**state["settings"], PLANS_KEY: state["training_settings"]}
        checkpoints.refuse_other_settings(stored, current, filename)

    def _continue_from(self, state: dict[str, Any]) -> None:
        self.history.rows = state["history"]
        self.history.losses = state["losses"]
        for name, weights in state["auxiliary"].items():
            unwrap(self.auxiliary[name]).load_state_dict(weights)
        for name, optimizer_state in state["optimizers"].items():
            self.auxiliary_optimizers[name].load_state_dict(optimizer_state)
        if "phases" in state:
            self.phases_begun = state["phases"]
        else:  # of our first edition
            planned = self.epochs_under(state["training_settings"]["num_epochs"])
            self.phases_begun = self.phases_at(self.current_epoch, planned)

    def _best_ema_of_all_epochs(self) -> float | None:
        # nnU-Net writes the latest checkpoint before it looks whether this epoch is the best;
        # a continued training would then replace the best checkpoint by a worse one
        latest = self.logger.get_value("ema_fg_dice", step=None)[-1:]
        known = [average for average in (self._best_ema, *latest) if average is not None]
        return max(known, default=None)

    def _extension_state(self) -> dict[str, Any]:
        return {
            "version": __version__,
            "training_settings": asdict(self.training_settings),
            "settings": self._settings_as_dicts(),
            "phases": dict(self.phases_begun),
            "history": self.history.rows,
            "losses": self.history.losses,
            "auxiliary": {n: unwrap(m).state_dict() for n, m in self.auxiliary.items()},
            "optimizers": {n: o.state_dict() for n, o in self.auxiliary_optimizers.items()},
        }

    def _settings_as_dicts(self) -> dict[str, dict[str, Any]]:
        return {method: asdict(settings) for method, settings in self.settings.items()}
