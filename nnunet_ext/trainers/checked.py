"""What a training refuses before its first step, and why one has failed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor
from tqdm import tqdm

from nnunet_ext._common.errors import UserError
from nnunet_ext.nnunet.plans import LEAST_STAGES
from nnunet_ext.trainers.distributed import unwrap


class CheckedTrainer(nnUNetTrainer):
    """Refuses plans and labels that would fail later, in words that tell less, or never."""

    _drawn: dict[str, float]  # parameter -> its sum, as it came from the seed

    def initialize(self) -> None:
        """Remember the weights that are drawn, to tell them from those that are taken over."""
        super().initialize()
        self._drawn = self._sums()

    def on_train_start(self) -> None:
        """Say, after -pretrained_weights, which weights are not as they were drawn."""
        super().on_train_start()
        sums = self._sums() if self.current_epoch == 0 else self._drawn
        taken = {_part(name) for name in sums if sums[name] != self._drawn[name]}
        if taken:
            left = {_part(name) for name in sums} - taken
            self.print_to_log_file(
                f"Pretrained weights are used in {', '.join(sorted(taken))}; random initial "
                f"weights in {', '.join(sorted(left)) or 'no other part'}."
            )

    def _sums(self) -> dict[str, float]:
        parameters = dict(unwrap(self.network).named_parameters())
        sums = torch.stack([p.detach().float().sum() for p in parameters.values()])
        return dict(zip(parameters, sums.tolist(), strict=True))

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Look at all labels before the first epoch.

        Raises:
            UserError: If a case has a label that dataset.json does not name.
        """
        datasets: tuple[Any, Any] = super().get_tr_and_val_datasets()
        if self.current_epoch == 0 and self.local_rank == 0:
            known = self.label_manager.all_labels
            largest = max([*known, self.label_manager.ignore_label or 0])
            for dataset in dict.fromkeys(datasets):
                refuse_unknown_labels(dataset, largest)
        return datasets

    def _build_loss(self) -> Any:
        """Refuse networks too shallow for deep supervision, on which stock nnU-Net learns nothing.

        Raises:
            UserError: If the weights of nnU-Net's loss would be 0/0.
        """
        scales = self._get_deep_supervision_scales()  # one less than stages; None without it
        if scales is not None and len(scales) + 1 < LEAST_STAGES:
            where = f'"{self.configuration_name}" in {self.plans_manager.plans_name}'
            raise UserError(
                f"{where} has a network of {len(scales) + 1} stages. Deep supervision needs "
                f"{LEAST_STAGES}: with fewer, nnU-Net weights every output with 0, and the loss is "
                "0/0. Plan with CompactPlanner, which plans deep enough, or train with "
                "ExtensionTrainerNoDeepSupervision."
            )
        return super()._build_loss()

    @property
    def use_pretrained_weights(self) -> bool:
        """What nnUNetv2_train_pretrained sets; our trainers do not load weights like that."""
        return False

    @use_pretrained_weights.setter
    def use_pretrained_weights(self, wanted: bool) -> None:
        if wanted:
            refuse_pretrained(type(self).__name__)


def _part(parameter: str) -> str:
    """Where a parameter is, in words of nnU-Net's: encoder.stages, decoder.seg_layers."""
    return ".".join(parameter.split(".")[:2])


def refuse_pretrained(trainer: str) -> None:
    """Refuse what would be a training from scratch under the name of another.

    Raises:
        UserError: Always.
    """
    raise UserError(
        f"{trainer} does not load the weights that nnUNetv2_train_pretrained and its plans name, "
        "and would train from scratch. Use one of nnU-Net's trainers for it, or nnUNetv2_train "
        "with -pretrained_weights and plans without pretrain_info."
    )


def names_pretrained_weights(plans: Mapping[str, Any]) -> bool:
    """Whether plans of nnU-Net's ``nnUNetv2_plan_like_...`` name weights to begin with."""
    return (plans.get("pretrain_info") or {}).get("checkpoint_path") is not None


def refuse_unknown_labels(dataset: Any, largest: int) -> None:
    """Refuse labels above the largest that dataset.json names, and below nnU-Net's -1.

    Args:
        dataset: One of nnU-Net's data sets.
        largest: Label; nnU-Net asks for consecutive ones.

    Raises:
        UserError: Naming the first such case.
    """
    for case in tqdm(dataset.identifiers, "Checking labels", leave=False, disable=None):
        labels = dataset.load_case(case)[1][:]
        if labels.max() > largest or labels.min() < -1:
            odd = labels.max() if labels.max() > largest else labels.min()
            voxels = int(np.count_nonzero(labels == odd))
            raise UserError(
                f"Case {case} has the label {odd} in {voxels} preprocessed voxels, but the largest "
                f"that dataset.json names is {largest}. Correct its file in labelsTr or the labels "
                "in dataset.json, then preprocess again; `nnUNetv2_plan_and_preprocess "
                "--verify_dataset_integrity` checks all files."
            )


def blame(images: Tensor, cases: Sequence[str]) -> str:
    """Say whether NaN can have come with the images (B, C, *S) of a batch, and what to do."""
    broken = _not_finite(images, cases)
    if not broken:
        return (
            "Their images are finite, so the training itself has become unstable: lower "
            "initial_lr in the plans, then continue with --c."
        )
    named = ", ".join(f"{case} in {voxels} voxels" for case, voxels in broken.items())
    return (
        f"Images are NaN or infinite: {named} of the patch. Look at the raw images of these cases "
        "and at nnU-Net's normalisation of them, correct them, and preprocess again."
    )


def _not_finite(images: Tensor, cases: Iterable[str]) -> dict[str, int]:
    counts = (~torch.isfinite(images)).flatten(1).sum(1).tolist()
    # batches of nnU-Net's for measuring speed have no cases
    return {case: count for case, count in zip(cases, counts, strict=False) if count}
