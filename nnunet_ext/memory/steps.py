"""The training step and the prediction of any trainer, built from plans and dataset.json alone."""

import copy
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

INSTEAD = ("nnUNet_preprocessed", "nnUNet_results")
"""nnU-Net's folders that are replaced by an empty one."""
WITHOUT_WANDB = {"nnUNet_wandb_enabled": "0"}

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Training:
    """A trainer and what it would be trained on, which need not be there."""

    trainer: Any  # its class
    plans: Mapping[str, Any]  # as in nnU-Net's plans file
    configuration: str  # name of one of theirs
    dataset_json: Mapping[str, Any]

    @property
    def resolved(self) -> dict[str, Any]:
        """The configuration with what it inherits."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(copy.deepcopy(dict(self.plans)))
        resolved: dict[str, Any] = manager.get_configuration(self.configuration).configuration
        return resolved

    def changed(self, **changes: Any) -> "Training":
        """The same with another value for some keys of the configuration, such as batch_size."""
        configurations = {
            **self.plans["configurations"],
            self.configuration: self.resolved | changes,
        }
        return replace(self, plans={**self.plans, "configurations": configurations})

    @contextmanager
    def trainer_without_data(self, device: torch.device = CPU) -> Iterator[Any]:
        """Construct and initialise the trainer, in folders that exist for so long.

        What it prints is lost.
        """
        described = copy.deepcopy(dict(self.dataset_json))
        if getattr(self.trainer, "requires_domains", False):
            described.setdefault("domains", {"first": "first", "second": "second"})
        plans = copy.deepcopy(dict(self.plans)) | {"continue_training": False}
        with _empty_folders(), redirect_stdout(io.StringIO()):
            trainer = self.trainer(plans, self.configuration, 0, described, device)
            data = Path(trainer.preprocessed_dataset_folder)
            data.mkdir(parents=True)
            (data / "case.b2nd").touch()  # by such files, nnU-Net knows the format
            trainer.initialize()
            trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
            yield trainer


@contextmanager
def _empty_folders() -> Iterator[None]:
    """Within it, nnU-Net's folders are empty ones, and nobody is told of a training."""
    before = dict(os.environ)
    with TemporaryDirectory() as folder:
        os.environ |= dict.fromkeys(INSTEAD, folder) | WITHOUT_WANDB
        try:
            yield
        finally:
            for name in (*INSTEAD, *WITHOUT_WANDB):
                del os.environ[name]
            os.environ |= before


def random_batch(trainer: Any) -> dict[str, Any]:
    """Make a batch of the shapes that nnU-Net's data loader delivers."""
    generator = torch.Generator().manual_seed(0)
    patch = trainer.configuration_manager.patch_size
    shape = (trainer.batch_size, 1, *patch)
    labels = trainer.label_manager
    # regions come with one more channel for the ignore label
    channels = len(labels.foreground_regions) + labels.has_ignore_label if labels.has_regions else 1
    values = 2 if labels.has_regions else labels.num_segmentation_heads
    scales = trainer._get_deep_supervision_scales() or [[1] * len(patch)]
    targets = [
        torch.randint(
            values,
            (shape[0], channels, *(round(n * s) for n, s in zip(patch, scale, strict=True))),
            generator=generator,
        ).to(torch.bool if labels.has_regions else torch.int16)
        for scale in scales
    ]
    # one case of each domain after the other, where the data set has domains
    domains: dict[str, str] = getattr(trainer, "domains", {})
    cases = list({domain: case for case, domain in domains.items()}.values()) or ["case"]
    return {
        "data": torch.randn(shape[0], trainer.num_input_channels, *patch, generator=generator),
        "target": targets if trainer.enable_deep_supervision else targets[0],
        "keys": [cases[i % len(cases)] for i in range(shape[0])],
    }


def networks_of(trainer: Any) -> list[torch.nn.Module]:
    """The network of a trainer and those that serve training only."""
    return [trainer.network, *getattr(trainer, "auxiliary", {}).values()]


def steps(
    trainer: Any, batch: dict[str, Any], only: str | None = None
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Lead an initialised trainer through its phases.

    Args:
        trainer: Any of nnU-Net's kind.
        batch: As its loader would give it.
        only: Name of the one to leap to.

    Yields:
        The name of each phase, and what takes a step as in the last epoch of this phase.
    """
    if hasattr(trainer, "_unlabelled"):  # images of the other domain come from a loader of theirs
        trainer._unlabelled = itertools.repeat(batch)
    for name, epoch in _last_epochs(trainer).items():
        if only not in (None, name):
            continue
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        yield name, partial(trainer.train_step, batch)


def _last_epochs(trainer: Any) -> dict[str, int]:
    phases = trainer.phases() if hasattr(trainer, "phases") else []
    epochs = trainer.num_epochs
    names = {0: "at first" if phases else "training"}
    for phase in phases:
        names[phase.first_epoch(epochs)] = phase.name  # of several at once, the last
    starts = sorted(start for start in names if start < epochs)
    return {names[start]: end - 1 for start, end in zip(starts, [*starts[1:], epochs], strict=True)}
