"""What every recipe shares: one optimisation step, and the networks and optimisers that take it.

The rest of it stands beside: settings and network (:mod:`~nnunet_ext.trainers.configured`),
augmentation, phases, domains, records (:mod:`~nnunet_ext.trainers.history`), checkpoints
(:mod:`~nnunet_ext.trainers.resuming`) and an early end (:mod:`~nnunet_ext.trainers.stopping`).
"""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from tqdm import tqdm

from nnunet_ext._common.attributes import replaced
from nnunet_ext._common.batch_statistics import running_statistics_kept
from nnunet_ext._common.errors import NonFiniteLossError
from nnunet_ext.domains.assignment import read_domains
from nnunet_ext.nnunet.ddp import OWN_BUFFERS, wrapping_with
from nnunet_ext.settings import read_training_settings
from nnunet_ext.trainers.augmented import AugmentedTrainer
from nnunet_ext.trainers.checked import (
    CheckedTrainer,
    blame,
    names_pretrained_weights,
    refuse_pretrained,
)
from nnunet_ext.trainers.configured import ConfiguredTrainer
from nnunet_ext.trainers.distributed import gather
from nnunet_ext.trainers.domains import DomainTrainer
from nnunet_ext.trainers.history import History, RecordingTrainer
from nnunet_ext.trainers.optimisation import (
    LR_FACTOR,
    Losses,
    Update,
    parameters_of,
    step,
    step_scaled,
)
from nnunet_ext.trainers.phases import PhasedPolyLR, PhasedTrainer
from nnunet_ext.trainers.resuming import ResumableTrainer
from nnunet_ext.trainers.seeding import seed_everything, without_clock
from nnunet_ext.trainers.stopping import StoppableTrainer

MOST_SKIPPED = 10
"""So many batches in a row whose loss is not finite stop a training in mixed precision."""


class ExtensionTrainer(
    StoppableTrainer,
    ConfiguredTrainer,
    AugmentedTrainer,
    PhasedTrainer,
    DomainTrainer,
    RecordingTrainer,
    ResumableTrainer,
    CheckedTrainer,
):
    """Stock nnU-Net whose settings come from the plans; the base of all recipes here.

    A recipe overrides :meth:`compute_losses`, and where it needs to :meth:`wrap_network`,
    :meth:`phases` and :meth:`build_auxiliary`. The constructor keeps nnU-Net's signature, because
    nnU-Net stores it by introspection.

    Raises:
        SettingsError: At construction, before anything is written, if the configuration
            holds settings that are unknown or out of range.
        UserError: Then, too, if the plans name weights that only nnU-Net's own trainers load.
    """

    leaves_parameters_unused: ClassVar[bool] = False
    """Whether some update leaves parameters of the network without gradient."""

    network: Any
    _bar: Any = None
    _skipped = 0  # batches of this epoch whose loss was not finite
    _skipped_in_a_row = 0

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's own signature)
    ) -> None:
        where = f'"{configuration}" in {plans["plans_name"]}'
        if names_pretrained_weights(plans):
            refuse_pretrained(type(self).__name__)
        resolved = PlansManager(plans).get_configuration(configuration).configuration
        self.training_settings = read_training_settings(
            resolved, where, self.collected_method_settings()
        )
        self.settings = self.read_settings(resolved, where)
        self.domains = read_domains(dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.apply_training_settings()
        self.phases_begun = {}
        self.auxiliary = nn.ModuleDict()
        self.auxiliary_optimizers: dict[str, Optimizer] = {}
        self._auxiliary_schedules: list[PolyLRScheduler] = []
        self.history = History()
        self._figures: dict[str, float] = {}

    # ------------------------------------------------------------------ what a recipe overrides

    def compute_losses(
        self, data: Tensor, target: Any, keys: list[str]
    ) -> Losses | Iterator[Losses | Update]:
        """Compute the loss of one batch, inside autocast.

        Args:
            data: Images (B, C, *S) on the device.
            target: Labels on the device, a list over scales with deep supervision.
            keys: Case identifiers of the batch.

        Returns:
            Named parts to be summed and optimised. A recipe with several updates per batch
            is a generator that yields one such dict, or an :class:`Update`, for each; it
            runs on after the step has been taken.
        """
        return {"segmentation": self.loss(self.network(data), target)}

    def build_auxiliary(self) -> dict[str, nn.Module]:
        """Build networks that serve training only; ``self.network`` exists already."""
        return {}

    def build_auxiliary_optimizers(self) -> dict[str, Optimizer]:
        """Build optimisers for parameters that are not to share the trainer's; their rates fall."""
        return {}

    # ------------------------------------------------------------------------------ life cycle

    def initialize(self) -> None:
        """Build network, optimisers and loss from the seed; wrap and compile auxiliary networks."""
        self._seed(0)
        with wrapping_with(find_unused_parameters=self.leaves_parameters_unused, **OWN_BUFFERS):
            super().initialize()
        self.has_batch_statistics = any(isinstance(m, _BatchNorm) for m in self.network.modules())
        # batch normalisation gives each batch statistics of its own; CPUs are slower on large ones
        self.runs_batches_apart = self.has_batch_statistics or self.device.type == "cpu"
        if self.is_ddp:
            self._share_auxiliary()
        if self._do_i_compile():
            for module in self.auxiliary.values():
                module.compile()

    def configure_optimizers(self, *stage: str) -> tuple[Optimizer, PolyLRScheduler]:
        """Build the auxiliary networks and all optimisers; called once the network exists.

        Args:
            stage: What ``nnUNetTrainer_warmup`` asks itself for as its training goes on.
        """
        self.auxiliary = nn.ModuleDict(self.build_auxiliary()).to(self.device)
        self.auxiliary_optimizers = self.build_auxiliary_optimizers()
        self._auxiliary_schedules = [
            PolyLRScheduler(optimizer, optimizer.defaults["lr"], self.num_epochs)
            for optimizer in self.auxiliary_optimizers.values()
        ]
        optimizer, scheduler = super().configure_optimizers(*stage)
        if self.training_settings.optimizer == "adam":
            optimizer = torch.optim.Adam(
                self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay
            )
            scheduler = PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
        if any(phase.fresh_schedule for phase in self.phases()):
            scheduler = PhasedPolyLR(optimizer, self.initial_lr, self.num_epochs)
        served = self._served_apart()
        shared = [p for p in self.auxiliary.parameters() if p.requires_grad and p not in served]
        if shared:
            optimizer.add_param_group({"params": shared})
        if self.is_ddp and served:
            # these may go through several passes for each backward, which DDP does not stand;
            # their gradients are averaged where they are optimised
            names = [name for name, p in self.network.named_parameters() if p in served]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.network, names)
        return optimizer, scheduler

    def _served_apart(self) -> dict[Tensor, None]:
        # no set, because ranks must go through them in the same order
        optimizers = self.auxiliary_optimizers.values()
        return dict.fromkeys(parameter for each in optimizers for parameter in parameters_of(each))

    def _share_auxiliary(self) -> None:
        if any(getattr(module, "recompute", False) for module in self.network.modules()):
            # to send gradients early, torch takes graphs apart; 2.1 to 2.5, at least, fail on these
            torch._dynamo.config.optimize_ddp = False
        served = self._served_apart()
        for name, module in self.auxiliary.items():
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            if any(p.requires_grad and p not in served for p in module.parameters()):
                own_device = [self.local_rank]
                module = DistributedDataParallel(module, device_ids=own_device, **OWN_BUFFERS)
            self.auxiliary[name] = module
        for parameter in served:
            dist.broadcast(parameter.data, src=0)

    def on_train_start(self) -> None:
        """Log the settings in force, too."""
        super().on_train_start()
        self.print_to_log_file(
            "\nThese are the nnunet_ext settings of this training:\n",
            {**asdict(self.training_settings), **self._settings_as_dicts()},
            "\n",
            add_timestamp=False,
        )

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Let equal seeds give equal batches."""
        loaders: tuple[Any, Any] = super().get_dataloaders()
        if self.training_settings.seed is not None:
            without_clock(loaders[0])
        return loaders

    def on_train_epoch_start(self) -> None:
        """Set learning rates by group, and draw from the epoch's own seed."""
        super().on_train_epoch_start()
        for group in self.optimizer.param_groups:
            group["lr"] *= group.get(LR_FACTOR, 1)
        for schedule in self._auxiliary_schedules:
            schedule.step(self.current_epoch)
        self.auxiliary.train()
        self._skipped = 0
        # per epoch, so that a continued training repeats what an uninterrupted one does
        self._seed(self.current_epoch + 1)
        if self.training_settings.progress_bar and self.local_rank == 0 and sys.stderr.isatty():
            self._bar = tqdm(total=self.num_iterations_per_epoch, leave=False, unit="batch")

    # ------------------------------------------------------------------------------------ a step

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take all optimisation steps of one batch.

        Returns:
            ``loss``, which nnU-Net logs as train loss, and ``parts`` by name.

        Raises:
            NonFiniteLossError: If a part is NaN or infinite, in mixed precision if that happens
                again and again; names it and the cases.
        """
        data = self.augmented(batch["data"].to(self.device, non_blocking=True))
        target = self._to_device(batch["target"])
        keys = [str(key) for key in batch.get("keys", ())]  # nnU-Net's dummy batches have none

        updates = self._updates(data, target, keys)
        parts: Losses = {}
        reported: Tensor | None = None  # as train loss: the last update of the network
        while True:
            self._zero_gradients()
            with self.autocast():
                update = next(updates, None)
            if update is None:
                break
            total = self._optimise(update)
            if update.optimizer is None or reported is None:
                reported = total
            parts |= {name: part.detach().float() for name, part in update.losses.items()}

        if reported is None:
            raise ValueError(f"{type(self).__name__}.compute_losses gave no loss to optimise.")
        # one transfer for all parts, as stock nnU-Net does one for its loss
        names = list(parts)
        values = torch.stack([reported, *parts.values()]).cpu().numpy()
        figures = dict(zip(names, values[1:].tolist(), strict=True))
        self._watch_for_non_finite(figures, batch["data"], keys)
        if self._bar is not None:
            self._bar.update()
        return {"loss": values[0], "parts": figures}

    def _updates(self, data: Tensor, target: Any, keys: list[str]) -> Iterator[Update]:
        # a generator, so that also a recipe that is none computes inside autocast
        losses = self.compute_losses(data, target, keys)
        for update in [losses] if isinstance(losses, dict) else losses:
            yield update if isinstance(update, Update) else Update(update)

    def _optimise(self, update: Update) -> Tensor:
        total = update.total()
        if update.optimizer is not None:
            scaled = self.grad_scaler is not None
            step(total, update.optimizer, averaged=self.is_ddp, only_finite=scaled)
        elif self.grad_scaler is not None:
            step_scaled(total, self.optimizer, self.grad_scaler)
        else:
            step(total, self.optimizer, averaged=False, only_finite=False)
        return total.detach()

    def _watch_for_non_finite(
        self, figures: Mapping[str, float], images: Tensor, keys: list[str]
    ) -> None:
        broken = [name for name, value in figures.items() if not np.isfinite(value)]
        if not broken:
            self._skipped_in_a_row = 0
            return
        self._skipped += 1
        self._skipped_in_a_row += 1
        # half precision overflows now and then, and its scaler leaves such steps out
        if self.grad_scaler is None or self._skipped_in_a_row == MOST_SKIPPED:
            again = f", {MOST_SKIPPED} times in a row" if self.grad_scaler is not None else ""
            raise NonFiniteLossError(
                f'The loss part "{broken[0]}" became {figures[broken[0]]} in epoch '
                f"{self.current_epoch}{again}, cases {', '.join(keys)}. The last checkpoint is "
                f"untouched. {blame(images, keys)}"
            )

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision on CUDA, nothing elsewhere, as in stock nnU-Net."""
        if self.device.type == "cuda":
            return torch.autocast(self.device.type, enabled=True)
        return nullcontext()

    def answers(
        self, network: Callable[..., Any], *inputs: Sequence[Tensor], counted: int = 0
    ) -> list[Any]:
        """Ask the network about several batches of equal size, at once where that is the same.

        Args:
            network: The trainer's, or what asks it; may answer with nested lists and tuples.
            inputs: Each argument of the network, for every batch.
            counted: The batch like which images to be predicted look. It alone enters the
                running statistics of batch normalisation.
        """
        if self.runs_batches_apart:
            answers = []
            for number, batch in enumerate(zip(*inputs, strict=True)):
                kept = nullcontext() if number == counted else running_statistics_kept(self.network)
                with kept:
                    answers.append(network(*batch))
            return answers
        together = network(*(torch.cat(list(batches)) for batches in inputs))
        return _split(together, len(inputs[0]))

    def _to_device(self, target: Any) -> Any:
        if isinstance(target, list):
            return [scale.to(self.device, non_blocking=True) for scale in target]
        return target.to(self.device, non_blocking=True)

    def _zero_gradients(self) -> None:
        for optimizer in (self.optimizer, *self.auxiliary_optimizers.values()):
            optimizer.zero_grad(set_to_none=True)

    def _seed(self, moment: int) -> None:
        if self.training_settings.seed is not None:
            seed_everything(self.training_settings.seed, self.local_rank, moment)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Take the progress bar away, and tell how many steps were left out."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        super().on_train_epoch_end(train_outputs)
        skipped = max(gather(self._skipped))
        if skipped:
            self.record("skipped_steps", skipped)

    # ------------------------------------------------------------------------------------- scores

    def network_answering(self, logits: Any) -> AbstractContextManager[None]:
        """Let nnU-Net score logits that are already there, e.g. those of an auxiliary network."""
        return replaced(self, network=_Answer(logits))

    def scores_beside(self, logits: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """Have nnU-Net count the hits and misses of logits that are not what is validated.

        No loss is computed, so that one that learns from validation sees each image once.
        """
        # nnU-Net edits targets in place where there is an ignore label
        untouched = {**batch, "target": copy.deepcopy(batch["target"])}
        with replaced(self, network=_Answer(logits), loss=lambda *_: torch.zeros(())):
            scores: dict[str, Any] = nnUNetTrainer.validation_step(self, untouched)
        return scores


class _Answer(nn.Module):
    """A network that answers whatever it is asked with the same logits."""

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _data: Tensor) -> Any:
        return self.logits


def _split(value: Any, parts: int) -> list[Any]:
    """Split the batch of all tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        return list(value.chunk(parts))
    return [type(value)(each) for each in zip(*(_split(v, parts) for v in value), strict=True)]
