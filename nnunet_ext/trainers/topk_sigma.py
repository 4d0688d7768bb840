"""Top-k / bottom-all-but-sigma: a loss for noisy pixel labels and a minority of hard images.

Paper: Diagnostics 2025, 15(17), 2189; see :mod:`nnunet_ext.losses.topk_sigma.envelope` for what is
certain.
"""

from math import ceil
from statistics import median
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from nnunet_ext.losses import NoiseEstimator, TopKSigmaCompoundLoss, TopKSigmaLoss
from nnunet_ext.losses.topk_sigma.noise import estimate_noise, join
from nnunet_ext.settings.topk_sigma import SMALL_BATCH, TopKSigmaSettings
from nnunet_ext.trainers.base import ExtensionTrainer
from nnunet_ext.trainers.catenorm import CateNormTrainer
from nnunet_ext.trainers.distributed import gather
from nnunet_ext.trainers.phases import Phase

TRIMS_TOO_MUCH = 0.5
RAMP = "ramp"
FULL_STRENGTH = "full strength"
"""Phases after the warm-up."""
AUTO = "auto"
ESTIMATE = "estimated_sigma"
RECENT_EPOCHS = 5
"""The estimates of so many epochs decide together, because those of few patches vary."""


class TopKSigmaMixin(ExtensionTrainer):
    """Puts the loss of any recipe whose segmentation loss is nnU-Net's into the envelope.

    Stands before the recipe: ``class Both(TopKSigmaMixin, CateNormTrainer)``. Training starts
    with nnU-Net's own loss, because before anything is learned the highest losses are those of
    rare classes; validation always reports it.
    """

    settings_key: ClassVar[str] = "topk_sigma"
    settings_class: ClassVar[type | None] = TopKSigmaSettings

    loss: TopKSigmaCompoundLoss

    def phases(self) -> list[Phase]:
        """nnU-Net's own loss first, then more and more of the envelope."""
        settings = self.settings.of(TopKSigmaSettings)
        full = settings.warm_up + settings.ramp
        return [*super().phases(), Phase(RAMP, settings.warm_up), Phase(FULL_STRENGTH, full)]

    @property
    def target_sigma(self) -> float:
        """Sigma at full strength; for "auto" the median estimate of the recent epochs."""
        sigma = self.settings.of(TopKSigmaSettings).sigma
        if not isinstance(sigma, str):
            return sigma
        recent = [row[ESTIMATE] for row in self.history.rows[-RECENT_EPOCHS:]]
        return median(recent) if len(recent) == RECENT_EPOCHS else 0.0

    @property
    def target_top_fraction(self) -> float:
        """Share of images at full strength."""
        settings, configuration = self.settings.of(TopKSigmaSettings), self.configuration_manager
        few = len(configuration.patch_size) == 3 and configuration.batch_size < SMALL_BATCH
        # "auto" changes nothing without evidence, and of hard images it looks for none
        return settings.top_fraction or (1.0 if few or settings.sigma == AUTO else 0.5)

    @property
    def strength(self) -> float:
        """How far the ramp has come in this epoch, from 0 in the warm-up to 1."""
        if self.reached(FULL_STRENGTH):
            return 1.0
        start, end = self.start_of(RAMP), self.start_of(FULL_STRENGTH)
        return max(self.current_epoch - start, 0) / max(end - start, 1)

    @property
    def class_names(self) -> list[str]:
        """Ground-truth classes by number; for regions background and then each region."""
        labels = self.dataset_json["labels"]
        names = [name for name in labels if name not in ("background", "ignore")]
        if not self.label_manager.has_regions:
            names.sort(key=lambda name: int(np.ravel(labels[name])[0]))  # 1 or [1]
        return ["background", *names]

    @property
    def _judged_names(self) -> list[str]:
        """What a voxel is or is not: classes, or regions and then the outside of each."""
        if not self.label_manager.has_regions:
            return self.class_names
        regions = self.class_names[1:]
        return [*regions, *(f"outside_{name}" for name in regions)]

    def _build_loss(self) -> nn.Module:
        settings = self.settings.of(TopKSigmaSettings)
        envelope = TopKSigmaLoss(
            smoothing=settings.smoothing,
            scope=settings.scope,
            num_classes=len(self.class_names),
        )
        per_rank = None
        if self.is_ddp:
            per_rank = ceil(self.configuration_manager.batch_size / dist.get_world_size())
        noise = NoiseEstimator(len(self._judged_names)) if settings.sigma == AUTO else None
        return TopKSigmaCompoundLoss(
            super()._build_loss(), envelope, len(self.class_names), settings.dice, per_rank, noise
        )

    def on_train_epoch_start(self) -> None:
        """Set how much is left out in this epoch."""
        super().on_train_epoch_start()
        envelope = self.loss.envelope
        envelope.sigma = self.strength * self.target_sigma
        envelope.top_fraction = 1 - self.strength * (1 - self.target_top_fraction)
        self.loss.train()

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Record what was left out, and warn if it is a lot."""
        super().on_train_epoch_end(train_outputs)
        self.record("sigma", self.loss.envelope.sigma)
        self.record("top_fraction", self.loss.envelope.top_fraction)
        left_out, batches = torch.stack(gather(self.loss.pop_observed())).sum(0)
        shares = (left_out / batches.clamp_min(1)).tolist()
        for name, share in zip(self.class_names, shares, strict=True):
            self.record(f"trimmed_{name}", share)
            if share > TRIMS_TOO_MUCH:
                self.print_to_log_file(
                    f'WARNING: the loss left out {share:.0%} of the voxels labelled "{name}". If '
                    "these labels are not that bad, the network unlearns the class. Lower "
                    'topk_sigma.sigma below its share of a patch, or use topk_sigma.scope "class".'
                )

    def on_validation_epoch_start(self) -> None:
        """Put the loss into evaluation mode."""
        super().on_validation_epoch_start()
        self.loss.eval()

    def on_validation_epoch_end(self, val_outputs: list[dict[str, Any]]) -> None:
        """Estimate the share of wrong labels from held-out cases."""
        super().on_validation_epoch_end(val_outputs)
        if self.loss.noise is None:
            return
        found = estimate_noise(join(gather(self.loss.noise.pop_counts())))
        for name, rate in zip(self._judged_names, found.rates.tolist(), strict=True):
            self.record(f"mislabelled_{name}", rate)
        self.record(ESTIMATE, found.sigma)


class TopKSigmaTrainer(TopKSigmaMixin, ExtensionTrainer):
    """Leaves out the voxels with the highest losses, then stresses the hardest images.

    Deviations from the paper, as far as it is known: nnU-Net's cross-entropy (regions: binary
    cross-entropy) is the enveloped loss, Dice follows its gates, and "images" are patches.
    """


class CateNormTopKSigmaTrainer(TopKSigmaMixin, CateNormTrainer):
    """Both passes of CateNorm are trained with the top-k / sigma loss."""
