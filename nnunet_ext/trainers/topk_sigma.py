"""Top-k / bottom-all-but-sigma: a loss for noisy pixel labels and a minority of hard images.

Paper: Diagnostics 2025, 15(17), 2189; see :mod:`nnunet_ext.losses.topk_sigma.envelope` for what is
certain.
"""

from collections import Counter
from math import ceil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor, nn

from nnunet_ext._common.files import write_csv
from nnunet_ext.losses import TopKSigmaCompoundLoss, TopKSigmaLoss
from nnunet_ext.losses.topk_sigma.noise import CaseRecord, Seen, Suspect
from nnunet_ext.settings.topk_sigma import SMALL_BATCH, TopKSigmaSettings
from nnunet_ext.trainers.base import ExtensionTrainer
from nnunet_ext.trainers.catenorm import CateNormTrainer
from nnunet_ext.trainers.distributed import gather
from nnunet_ext.trainers.phases import Phase

MUCH = 0.5
"""Share of a class that is much to leave out."""
RAMP = "ramp"
FULL_STRENGTH = "full strength"
"""Phases after the warm-up."""
AUTO = "auto"
PERSISTS = 3
"""In so many epochs in a row much must be left out of a class to be warned of."""
CONTRADICTED_KEY = "contradicted"
"""Where our part of a checkpoint holds the cases' records."""
SUSPECTS = "suspects.csv"


class TopKSigmaMixin(ExtensionTrainer):
    """Puts the loss of any recipe whose segmentation loss is nnU-Net's into the envelope.

    Stands before the recipe: ``class Both(TopKSigmaMixin, CateNormTrainer)``. Training starts
    with nnU-Net's own loss, because before anything is learned the highest losses are those of
    rare classes; validation always reports it. With ``sigma="auto"``, cases are suspected whose
    labels a confident network contradicts more than those of others, and ``suspects.csv`` beside
    the log names them; see :mod:`nnunet_ext.losses.topk_sigma.noise`.
    """

    settings_key: ClassVar[str] = "topk_sigma"
    settings_class: ClassVar[type | None] = TopKSigmaSettings

    loss: TopKSigmaCompoundLoss

    def initialize(self) -> None:
        """Begin to count epochs in which much is left out of a class."""
        self._epochs_of_much: Counter[str] = Counter()
        super().initialize()

    def phases(self) -> list[Phase]:
        """nnU-Net's own loss first, then more and more of the envelope."""
        settings = self.settings.of(TopKSigmaSettings)
        full = settings.warm_up + settings.ramp
        return [*super().phases(), Phase(RAMP, settings.warm_up), Phase(FULL_STRENGTH, full)]

    @property
    def target_sigma(self) -> float:
        """Sigma at full strength; "auto" takes no share from images that nothing speaks against."""
        sigma = self.settings.of(TopKSigmaSettings).sigma
        return 0.0 if isinstance(sigma, str) else sigma

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
        heads = self.label_manager.num_segmentation_heads
        record = CaseRecord(heads) if settings.sigma == AUTO else None
        return TopKSigmaCompoundLoss(
            super()._build_loss(), envelope, len(self.class_names), settings.dice, per_rank, record
        )

    def on_train_epoch_start(self) -> None:
        """Set how much is left out in this epoch."""
        super().on_train_epoch_start()
        envelope = self.loss.envelope
        envelope.sigma = self.strength * self.target_sigma
        envelope.top_fraction = 1 - self.strength * (1 - self.target_top_fraction)
        record = self.loss.record
        self.loss.suspected = record.suspected() if record and self.reached(RAMP) else {}
        self.loss.train()

    def compute_losses(self, data: Tensor, target: Any, keys: list[str]) -> Any:
        """Tell the loss whose images it is about to see."""
        self.loss.expect(keys)
        return super().compute_losses(data, target, keys)

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """Record what was left out, warn if it stays a lot, and list the suspects."""
        super().on_train_epoch_end(train_outputs)
        self.record("sigma", self.loss.envelope.sigma)
        self.record("top_fraction", self.loss.envelope.top_fraction)
        left_out, batches = torch.stack(gather(self.loss.pop_observed())).sum(0)
        shares = (left_out / batches.clamp_min(1)).tolist()
        for name, share in zip(self.class_names, shares, strict=True):
            self.record(f"trimmed_{name}", share)
            self._epochs_of_much[name] = self._epochs_of_much[name] + 1 if share > MUCH else 0
            if self._epochs_of_much[name] == PERSISTS:
                self.print_to_log_file(
                    f'WARNING: the loss left out {share:.0%} of the voxels labelled "{name}". If '
                    "these labels are not that bad, the network unlearns the class. Lower "
                    'topk_sigma.sigma below its share of a patch, or use topk_sigma.scope "class".'
                )
        if self.loss.record is not None:
            self.loss.record.close_epoch(gather(self.loss.record.pop_seen()))
            suspects = self.loss.record.suspects()
            self.record("suspected_cases", len({suspect.case for suspect in suspects}))
            if self.local_rank == 0:
                self._write(suspects)

    def _write(self, suspects: list[Suspect]) -> None:
        names = self.class_names[-self.label_manager.num_segmentation_heads :]
        table = pd.DataFrame(suspects, columns=Suspect._fields)
        table["label"] = [names[suspect.label] for suspect in suspects]
        write_csv(table, Path(self.output_folder, SUSPECTS), "%.3f")

    def on_validation_epoch_start(self) -> None:
        """Put the loss into evaluation mode."""
        super().on_validation_epoch_start()
        self.loss.eval()

    def _continue_from(self, state: dict[str, Any]) -> None:
        super()._continue_from(state)
        if self.loss.record is not None and CONTRADICTED_KEY in state:
            self.loss.record.total = Seen(*state[CONTRADICTED_KEY])

    def _extension_state(self) -> dict[str, Any]:
        record = self.loss.record
        return super()._extension_state() | (
            {CONTRADICTED_KEY: tuple(record.total)} if record else {}
        )


class TopKSigmaTrainer(TopKSigmaMixin, ExtensionTrainer):
    """Leaves out the voxels with the highest losses, then stresses the hardest images.

    Deviations from the paper, as far as it is known: nnU-Net's cross-entropy (regions: binary
    cross-entropy) is the enveloped loss, Dice follows its gates, and "images" are patches.
    """


class CateNormTopKSigmaTrainer(TopKSigmaMixin, CateNormTrainer):
    """Both passes of CateNorm are trained with the top-k / sigma loss."""
