"""What every recipe shares: one optimisation step, auxiliary networks, settings, logging."""

import io
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import torch
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import (
    nnUNetTrainerDA5,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from tqdm import tqdm

from nnunet_ext import __version__
from nnunet_ext._common.errors import NonFiniteLossError
from nnunet_ext.augmentation import gin
from nnunet_ext.domains import sampling
from nnunet_ext.domains.assignment import read_domains, refuse_unfit_for_training
from nnunet_ext.evaluation import validation
from nnunet_ext.settings import (
    PLANS_KEY,
    TrainingSettings,
    decisive,
    read_method_settings,
    read_training_settings,
)
from nnunet_ext.trainers import checkpoint as checkpoints
from nnunet_ext.trainers.distributed import average_gradients, gather, unwrap
from nnunet_ext.trainers.history import History

Losses: TypeAlias = dict[str, Tensor]
"""Named scalar parts of a loss; their sum is optimised."""

GRADIENT_NORM = 12
"""nnU-Net clips gradients to this norm."""
ADAM_LR = 1e-3
LR_FACTOR = "lr_factor"
"""Key of a parameter group: its share of the learning rate that the schedule gives to all."""
SEED_STRIDE = 100_003
"""Prime, so that seeds of different runs do not meet in neighbouring epochs."""


@dataclass
class Update:
    """One optimisation step out of possibly several per batch.

    Attributes:
        losses: Named scalar parts, already weighted.
        optimizer: Who steps; None is the trainer's own, over network and auxiliary networks.
            Other optimisers work without the gradient scaler of mixed precision, so their
            losses must be computed in float32.
    """

    losses: Losses
    optimizer: Optimizer | None = None


class ExtensionTrainer(nnUNetTrainer):
    """Stock nnU-Net whose settings come from the plans; the base of all recipes here.

    A recipe overrides :meth:`compute_losses`, and where it needs to
    :meth:`build_auxiliary` and :meth:`build_network_architecture`. The constructor keeps
    nnU-Net's signature, because nnU-Net stores it by introspection.

    Raises:
        SettingsError: At construction, before anything is written, if the configuration
            holds settings that are unknown or out of range.
    """

    method_settings: ClassVar[dict[str, type]] = {}
    """Method -> settings class that this class adds to those of its bases."""
    epochs_from_name: ClassVar[int | None] = None
    """Set by names such as CateNormTrainer_250epochs."""
    requires_domains: ClassVar[bool] = False
    """Whether training needs two domains and the domain of every training case."""
    leaves_parameters_unused: ClassVar[bool] = False
    """Whether some update leaves parameters of the network without gradient."""

    network: Any
    num_epochs: int
    _best_ema: float | None

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net's own signature)
    ) -> None:
        where = f'"{configuration}" in {plans["plans_name"]}'
        resolved = PlansManager(plans).get_configuration(configuration).configuration
        self.training_settings: TrainingSettings = read_training_settings(
            resolved, where, self.collected_method_settings()
        )
        self.settings: dict[str, Any] = {
            method: read_method_settings(resolved, method, settings_class, where)
            for method, settings_class in self.collected_method_settings().items()
        }
        self.domains = read_domains(dataset_json)  # case -> domain
        super().__init__(plans, configuration, fold, dataset_json, device)
        self._apply_training_settings()
        self.auxiliary = nn.ModuleDict()
        self.auxiliary_optimizers: dict[str, Optimizer] = {}
        self.history = History()
        self._figures: dict[str, float] = {}
        self._bar: Any = None
        self._phase_begins = False

    @property
    def image_channels(self) -> int:
        """Input channels that are images; a cascade's others are segmentations."""
        return len(self.configuration_manager.normalization_schemes)

    @property
    def has_thick_slices(self) -> bool:
        """Whether patches are so anisotropic that nnU-Net, too, augments them slice by slice."""
        patch_size = self.configuration_manager.patch_size
        return len(patch_size) == 3 and max(patch_size) / patch_size[0] > ANISO_THRESHOLD

    @classmethod
    def collected_method_settings(cls) -> dict[str, type]:
        """Method -> settings class, over all classes that this trainer is mixed from."""
        collected: dict[str, type] = {}
        for base in reversed(cls.__mro__):
            own = vars(base)
            collected |= own.get("method_settings", {})
            if own.get("settings_class"):
                collected[own["settings_key"]] = own["settings_class"]
        return collected

    def _apply_training_settings(self) -> None:
        settings = self.training_settings
        self.num_epochs = self.epochs_from_name or settings.num_epochs or self.num_epochs
        for name in ("num_iterations_per_epoch", "num_val_iterations_per_epoch", "save_every"):
            setattr(self, name, getattr(settings, name) or getattr(self, name))
        if settings.optimizer == "adam":
            self.initial_lr = ADAM_LR
        self.initial_lr = settings.initial_lr or self.initial_lr

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
        """Build optimisers of their own for auxiliary networks that must not share one."""
        return {}

    # ------------------------------------------------------------------------------ life cycle

    def initialize(self) -> None:
        """Build network, optimisers and loss from the seed; wrap and compile auxiliary networks."""
        self._seed(0)
        super().initialize()
        has_batch_statistics = any(isinstance(m, _BatchNorm) for m in self.network.modules())
        # batch normalisation gives each batch statistics of its own; CPUs are slower on large ones
        self.runs_batches_apart = has_batch_statistics or self.device.type == "cpu"
        if self.is_ddp:
            self._wrap_for_ddp()
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
        optimizer, scheduler = super().configure_optimizers(*stage)
        if self.training_settings.optimizer == "adam":
            optimizer = torch.optim.Adam(
                self.network.parameters(), self.initial_lr, weight_decay=self.weight_decay
            )
            scheduler = PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
        served = {
            parameter
            for other in self.auxiliary_optimizers.values()
            for parameter in _parameters_of(other)
        }
        shared = [p for p in self.auxiliary.parameters() if p not in served]
        if shared:
            optimizer.add_param_group({"params": shared})
        return optimizer, scheduler

    def _wrap_for_ddp(self) -> None:
        if any(getattr(module, "recompute", False) for module in self.network.modules()):
            # to send gradients early, torch takes graphs apart; 2.1 to 2.5, at least, fail on these
            torch._dynamo.config.optimize_ddp = False
        if self.leaves_parameters_unused:
            # stock nnU-Net has no way to ask for this, so its wrapper is replaced
            self.network = DistributedDataParallel(
                unwrap(self.network, keep_compiled=True),
                device_ids=[self.local_rank],
                find_unused_parameters=True,
                # they are equal on all ranks, and a rank without validation cases sends nothing
                broadcast_buffers=False,
            )
        for name, module in self.auxiliary.items():
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)
            self.auxiliary[name] = DistributedDataParallel(module, device_ids=[self.local_rank])

    def on_train_start(self) -> None:
        """Log the settings in force, too."""
        super().on_train_start()
        self.print_to_log_file(
            "\nThese are the nnunet_ext settings of this training:\n",
            {**asdict(self.training_settings), **self._settings_as_dicts()},
            "\n",
            add_timestamp=False,
        )

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:
        """Leave out mirroring in prediction if the settings say so."""
        configured: tuple[Any, ...] = (
            nnUNetTrainerDA5.configure_rotation_dummyDA_mirroring_and_inital_patch_size(self)
            if self._augments("strong")
            else super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if not self.training_settings.mirror_prediction:
            self.inference_allowed_mirroring_axes = None
        return configured

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """Take those of nnU-Net's DA5 if the settings say so."""
        if self._augments("strong"):
            return nnUNetTrainerDA5.get_training_transforms(*args, **kwargs)
        return super().get_training_transforms(*args, **kwargs)

    def _augments(self, kind: str) -> bool:
        return kind in self.training_settings.augmentation.split("+")

    def augmented(self, data: Tensor) -> Tensor:
        """Change the contrasts of a batch of images (B, C, *S) on the device, if asked for."""
        if not self._augments("gin"):
            return data
        images, others = data.tensor_split([self.image_channels], dim=1)
        settings = self.training_settings
        mixed = gin(
            images,
            depth=settings.gin_depth,
            in_plane=self.has_thick_slices,
            probability=settings.gin_probability,
        )
        return torch.cat([self.with_background_of(images, mixed), others], 1)

    def with_background_of(self, images: Tensor, changed: Tensor) -> Tensor:
        """Put back the zeros that nnU-Net has set outside the mask of masked normalisation."""
        masked = self.configuration_manager.use_mask_for_norm
        if not any(masked):
            return changed
        shape = (1, -1, *[1] * (images.ndim - 2))
        background = torch.tensor(masked, device=images.device).view(shape) & (images == 0)
        return changed.masked_fill(background, 0)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Refuse data without the domains that this training needs; weigh cases by domain.

        Raises:
            UserError: If training cases lack a domain, or have too few.
        """
        training, held_out = super().get_tr_and_val_datasets()
        evenly = self.training_settings.sampling == "domains"
        if self.requires_domains or evenly:
            refuse_unfit_for_training(
                self.domains,
                training.identifiers,
                type(self).__name__ if self.requires_domains else 'sampling "domains"',
                self.plans_manager.dataset_name,
                least=2 if self.requires_domains else 1,
            )
        if evenly:
            training.identifiers = sampling.evenly(training.identifiers, self.domains)
        return training, held_out

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Let equal seeds give equal batches."""
        loaders: tuple[Any, Any] = super().get_dataloaders()
        if self.training_settings.seed is not None and isinstance(
            loaders[0], SingleThreadedAugmenter
        ):
            # stock nnU-Net times two ways to blur and takes the faster; their rounding differs
            for transform in loaders[0].data_loader.transforms.transforms:
                transform = getattr(transform, "transform", transform)  # from its RandomTransform
                if isinstance(transform, GaussianBlurTransform):
                    transform.benchmark = False
        return loaders

    def on_train_epoch_start(self) -> None:
        """Set learning rates by group, and draw from the epoch's own seed."""
        super().on_train_epoch_start()
        for group in self.optimizer.param_groups:
            group["lr"] *= group.get(LR_FACTOR, 1)
        self.auxiliary.train()
        # per epoch, so that a continued training repeats what an uninterrupted one does
        self._seed(self.current_epoch + 1)
        if self.training_settings.progress_bar and self.local_rank == 0 and sys.stderr.isatty():
            self._bar = tqdm(total=self.num_iterations_per_epoch, leave=False, unit="batch")

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Take all optimisation steps of one batch.

        Returns:
            ``loss``, which nnU-Net logs as train loss, and ``parts`` by name.

        Raises:
            NonFiniteLossError: If a part is NaN or infinite; names it and the cases.
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
        self._refuse_non_finite(figures, keys)
        if self._bar is not None:
            self._bar.update()
        return {"loss": values[0], "parts": figures}

    def _updates(self, data: Tensor, target: Any, keys: list[str]) -> Iterator[Update]:
        # a generator, so that also a recipe that is none computes inside autocast
        losses = self.compute_losses(data, target, keys)
        for update in [losses] if isinstance(losses, dict) else losses:
            yield update if isinstance(update, Update) else Update(update)

    def _optimise(self, update: Update) -> Tensor:
        total = torch.stack([part.float() for part in update.losses.values()]).sum()
        optimizer = update.optimizer or self.optimizer
        scaler = self.grad_scaler if update.optimizer is None else None
        if scaler is None:
            total.backward()
            if update.optimizer is not None and self.is_ddp:
                # some auxiliary networks cannot be wrapped; for others this changes nothing
                average_gradients(_parameters_of(optimizer))
            nn.utils.clip_grad_norm_(_parameters_of(optimizer), GRADIENT_NORM)
            optimizer.step()
        else:
            scaler.scale(total).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(_parameters_of(optimizer), GRADIENT_NORM)
            scaler.step(optimizer)
            scaler.update()
        return total.detach()

    def _refuse_non_finite(self, figures: Mapping[str, float], keys: list[str]) -> None:
        broken = [name for name, value in figures.items() if not np.isfinite(value)]
        if broken:
            raise NonFiniteLossError(
                f'The loss part "{broken[0]}" became {figures[broken[0]]} in epoch '
                f"{self.current_epoch}, cases {', '.join(keys)}. The last checkpoint is untouched. "
                "Look at these images (infinite or missing voxels?), or lower initial_lr in the "
                "plans, then continue with --c."
            )

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Record the mean of each part of the loss."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        parts = [output.pop("parts") for output in train_outputs]
        super().on_train_epoch_end(train_outputs)
        parts = [part for rank in gather(parts) for part in rank]
        names = list(dict.fromkeys(name for part in parts for name in part))
        self.history.losses += [name for name in names if name not in self.history.losses]
        for name in names:
            self.record(name, float(np.mean([part[name] for part in parts if name in part])))

    def validation_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Count voxels by domain, too, if there are domains."""
        if not self.domains:
            scores: dict[str, Any] = super().validation_step(batch)
            return scores
        with validation.counted_by_image(self) as counted:
            scores = super().validation_step(batch)
        return scores | {
            "counts": validation.with_domains(counted, batch.get("keys", ()), self.domains)
        }

    @contextmanager
    def network_answering(self, logits: Any) -> Iterator[None]:
        """Let nnU-Net score logits that are already there, e.g. those of an auxiliary network."""
        network = self.network
        self.network = _Answer(logits)
        try:
            yield
        finally:
            self.network = network

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Record the pseudo-Dice of each domain."""
        counts = [count for output in val_outputs for count in output.pop("counts", ())]
        super().on_validation_epoch_end(val_outputs)
        if self._phase_begins:
            # an average over both phases would favour the first epochs of the new one
            latest = float(self.logger.get_value("mean_fg_dice", step=-1))
            self.logger.get_value("ema_fg_dice", step=None)[-1] = latest
            self._phase_begins = False
        counts = [count for rank in gather(counts) for count in rank]
        background = not self.label_manager.has_regions
        for domain, dice in validation.pseudo_dice(counts, background).items():
            self.record(f"{domain}_pseudo_dice", dice)

    def begin_phase(self) -> None:
        """Forget the best checkpoint: what is trained from this epoch on is not the same."""
        self._best_ema = None
        self._phase_begins = True

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Score held-out cases by domain, too."""
        super().perform_actual_validation(save_probabilities)
        folder = Path(self.output_folder, "validation")
        # some of nnU-Net's trainers, made for measuring speed, do not validate
        if self.domains and self.local_rank == 0 and (folder / "summary.json").exists():
            table = validation.summarise(
                folder,
                self.dataset_json,
                self.plans_manager.image_reader_writer_class(),
                self.label_manager.ignore_label,
            )
            self.print_to_log_file(f"Validation by domain:\n{table}")

    def record(self, name: str, value: float) -> None:
        """Put a figure of this epoch into ``losses.csv``, its plot, the log and W&B."""
        self._figures[name] = value

    def on_epoch_end(self) -> None:
        """Log what was recorded, then write ``losses.csv`` and its plot."""
        self.print_to_log_file(*(f"{name} {value:.4f} " for name, value in self._figures.items()))
        self.history.add(self.current_epoch, self._figures)
        for logger in self.logger.loggers:
            for name, value in self._figures.items():
                logger.log(f"nnunet_ext/{name}", value, self.current_epoch)
        self._figures = {}
        super().on_epoch_end()
        if self.local_rank == 0:
            self.history.write_csv(Path(self.output_folder, "losses.csv"))
            self.history.plot(Path(self.output_folder, "losses.png"))

    # ----------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Save what nnU-Net saves and, under a key of our own, what a recipe needs to go on."""
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)  # nnU-Net decides what is saved, and whether
        if buffer.tell():
            buffer.seek(0)
            checkpoint = torch.load(buffer, map_location="cpu", weights_only=False)
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
        if state is not None:
            self.history.rows = state["history"]
            self.history.losses = state["losses"]
            for name, weights in state["auxiliary"].items():
                unwrap(self.auxiliary[name]).load_state_dict(weights)
            for name, optimizer_state in state["optimizers"].items():
                self.auxiliary_optimizers[name].load_state_dict(optimizer_state)

    def _accept(self, state: dict[str, Any], filename: str) -> None:
        """Look at the state in a checkpoint before anything is loaded; raise if it does not fit."""
        current = {method: decisive(settings) for method, settings in self.settings.items()}
        current[PLANS_KEY] = {"optimizer": self.training_settings.optimizer}
        stored = {**state["settings"], PLANS_KEY: state["training_settings"]}
        checkpoints.refuse_other_settings(stored, current, filename)

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
            "history": self.history.rows,
            "losses": self.history.losses,
            "auxiliary": {n: unwrap(m).state_dict() for n, m in self.auxiliary.items()},
            "optimizers": {n: o.state_dict() for n, o in self.auxiliary_optimizers.items()},
        }

    def _settings_as_dicts(self) -> dict[str, dict[str, Any]]:
        return {method: asdict(settings) for method, settings in self.settings.items()}

    # --------------------------------------------------------------------------------- helpers

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision on CUDA, nothing elsewhere, as in stock nnU-Net."""
        if self.device.type == "cuda":
            return torch.autocast(self.device.type, enabled=True)
        return nullcontext()

    def answers(self, network: Callable[..., Any], *inputs: Sequence[Tensor]) -> list[Any]:
        """Ask a network about several batches of equal size, at once where that is the same.

        Args:
            network: May answer with tensors in nested lists and tuples.
            inputs: Each argument of the network, for every batch.
        """
        if self.runs_batches_apart:
            return [network(*batch) for batch in zip(*inputs, strict=True)]
        together = network(*(torch.cat(list(batches)) for batches in inputs))
        return _split(together, len(inputs[0]))

    def _to_device(self, target: Any) -> Any:
        if isinstance(target, list):
            return [scale.to(self.device, non_blocking=True) for scale in target]
        return target.to(self.device, non_blocking=True)

    def _zero_gradients(self) -> None:
        for optimizer in (self.optimizer, *self.auxiliary_optimizers.values()):
            optimizer.zero_grad(set_to_none=True)

    def _seed(self, offset: int) -> None:
        if self.training_settings.seed is not None:
            seed = self.training_settings.seed * SEED_STRIDE + offset * 1_000 + self.local_rank
            seed %= 2**32
            random.seed(seed)
            np.random.seed(seed)  # the global generator, because batchgenerators draws from it
            torch.manual_seed(seed)


class _Answer(nn.Module):
    """A network that answers whatever it is asked with the same logits."""

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, _data: Tensor) -> Any:
        return self.logits


def give_own_rate(optimizer: Optimizer, parameters: Iterable[Tensor], factor: float) -> None:
    """Move parameters of the first group to one that learns at another rate from then on."""
    moved = {id(parameter) for parameter in parameters}
    first = optimizer.param_groups[0]
    own = {**first, "params": [p for p in first["params"] if id(p) in moved]}
    first["params"] = [p for p in first["params"] if id(p) not in moved]
    optimizer.add_param_group({**own, LR_FACTOR: factor})


def _split(value: Any, parts: int) -> list[Any]:
    """Split the batch of all tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        return list(value.chunk(parts))
    return [type(value)(each) for each in zip(*(_split(v, parts) for v in value), strict=True)]


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
