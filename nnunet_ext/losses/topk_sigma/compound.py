"""Top-k / bottom-all-but-sigma around nnU-Net's own losses: cross-entropy or BCE, and Dice.

How a region loss is to be enveloped the paper does not say (see
:mod:`nnunet_ext.losses.topk_sigma.envelope`); the ways offered here are ours.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn

from nnunet_ext._common.errors import UserError
from nnunet_ext.losses.topk_sigma.envelope import Selected, TopKSigmaLoss, trimmed_share
from nnunet_ext.losses.topk_sigma.noise import CaseRecord

DiceForm: TypeAlias = Literal["masked", "plain", "none"]
Scales: TypeAlias = Tensor | Sequence[Tensor]
"""One tensor, or one per scale of deep supervision, full resolution first."""

OBSERVED_VOXELS = 2**17
"""Voxels of a batch, evenly spread, that logged shares and estimates are taken from."""


class _Voxels(NamedTuple):
    """One scale of a batch.

    Attributes:
        loss: Cross-entropy (B, *S), or binary cross-entropy over all regions.
        truth: What Dice compares with: labels (B, 1, *S), or regions (B, R, *S) as floats.
        valid: Voxels outside the ignore label (B, *S); None if there is no ignore label.
    """

    loss: Tensor
    truth: Tensor
    valid: Tensor | None


class TopKSigmaCompoundLoss(nn.Module):
    """nnU-Net's loss in the envelope of :class:`TopKSigmaLoss`.

    In evaluation, and as long as the envelope leaves nothing out, this is nnU-Net's own loss.
    Otherwise voxels are left out at each scale of deep supervision by the loss there; images
    are weighted once, at full resolution, by their trimmed cross-entropy alone: the soft Dice
    of an image without foreground is near 0 however good the prediction is.

    One gate per voxel serves all classes or regions. The class of a voxel in region-based
    training is the last region that contains it, the order in which nnU-Net turns regions into
    labels; 0 is none.

    Args:
        stock: nnU-Net's loss, possibly wrapped for deep supervision; it keeps its weights,
            Dice settings and compilation.
        envelope: How to reduce over voxels and images. Its ``sigma`` and ``top_fraction`` may
            change at any time.
        num_classes: Ground-truth classes, for regions their number and one for background.
        dice: ``"masked"`` lets a voxel count in Dice as much as in the cross-entropy,
            ``"plain"`` fully; ``"none"`` leaves Dice out everywhere, also in ``stock``.
        images_per_rank: Largest batch of a process under DDP, where images of all ranks are
            ranked together; None if there is only this process.
        record: Keeps account of contradicted labels in training, if given, each label or region
            being a class. Of the cases in :attr:`suspected`, the voxels whose label rests on
            the suspected word alone are left out as well, whatever ``sigma`` is.

    Raises:
        UserError: If ``stock`` is none of nnU-Net's two default losses.
    """

    def __init__(
        self,
        stock: nn.Module,
        envelope: TopKSigmaLoss,
        num_classes: int,
        dice: DiceForm = "masked",
        images_per_rank: int | None = None,
        record: CaseRecord | None = None,
    ) -> None:
        super().__init__()
        if dice not in ("masked", "plain", "none"):
            raise ValueError(f"dice must be one of masked, plain, none, got {dice!r}.")
        self.stock: Any = stock
        self.envelope = envelope
        self.num_classes = num_classes
        self.dice: DiceForm = dice
        self.images_per_rank = images_per_rank
        self.record = record
        self.suspected: Mapping[str, Tensor] = {}
        """Case -> what is suspected of it, by kind and class (2, K)."""
        self._cases: Sequence[str] = ()
        self._to_be_counted = False
        _refuse_other_losses(self._single_scale)
        if dice == "none":
            self._single_scale.weight_dice = 0
        self._observed: Tensor | None = None

    @property
    def _single_scale(self) -> Any:
        return self.stock.loss if isinstance(self.stock, DeepSupervisionWrapper) else self.stock

    @property
    def _has_regions(self) -> bool:
        return isinstance(self._single_scale, DC_and_BCE_loss)

    def expect(self, cases: Sequence[str]) -> None:
        """Tell which case each image of the next batch belongs to.

        The first call in training counts it; those that follow, as of a second pass, do not.
        """
        self._cases = cases
        self._to_be_counted = True

    def forward(self, net_output: Scales, target: Scales) -> Tensor:
        """Compute the loss, with nnU-Net's arguments.

        Args:
            net_output: Logits (B, C, *S), or one per scale, full resolution first; computed
                in float32 at least. Logits of one scale are not weighted, even if ``stock`` is
                wrapped for deep supervision.
            target: Labels (B, 1, *S), or regions (B, R, *S) and, where there is an ignore
                label, its map as one more channel; one per scale like ``net_output``.
        """
        stock = self._single_scale if isinstance(net_output, Tensor) else self.stock
        suspected = self._consult(net_output, target) if self.training else None
        if not (self.training and (self.envelope.is_active or suspected is not None)):
            loss: Tensor = stock(net_output, target)
            return loss
        scale_weights = getattr(stock, "weight_factors", [1.0])
        outputs = [net_output] if isinstance(net_output, Tensor) else net_output
        targets = [target] if isinstance(target, Tensor) else target
        single = self._single_scale
        images: Selected | None = None
        parts: list[Tensor] = []
        for weight, logits, labels in zip(scale_weights, outputs, targets, strict=True):
            if weight == 0:
                continue
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            voxels = self._voxels(logits, labels)
            by_class = self._classes(voxels.truth) if self.envelope.scope == "class" else None
            valid = voxels.valid
            if suspected is not None:
                valid = self._unsuspicious(logits, voxels, suspected)
            trimmed = self.envelope.trim(voxels.loss, valid, by_class)
            if images is None:
                images = self._select(trimmed.ranking)
                parts.append(weight * single.weight_ce * images.offset)
                self._observe(trimmed.weights, voxels)
            parts.append(weight * single.weight_ce * images.reduce(trimmed.means))
            if single.weight_dice != 0:
                trims = self.envelope.sigma > 0 or suspected is not None
                dice = self._dice(logits, voxels, trimmed.weights if trims else None, images)
                parts.append(weight * single.weight_dice * dice)
        return torch.stack(parts).sum()

    def _voxels(self, logits: Tensor, target: Tensor) -> _Voxels:
        single = self._single_scale
        if self._has_regions:
            valid = ~target[:, -1].bool() if single.use_ignore_label else None
            truth = (target if valid is None else target[:, :-1]).to(logits.dtype)
            regions = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
            # nnU-Net averages over regions, but adds them up where there is an ignore label
            return _Voxels(regions.mean(1) if valid is None else regions.sum(1), truth, valid)
        truth = target.long()
        valid = None
        if single.ignore_label is not None:
            valid = (truth != single.ignore_label)[:, 0]
            truth = truth.where(valid[:, None], 0)  # any class, because these voxels do not count
        return _Voxels(F.cross_entropy(logits, truth[:, 0], reduction="none"), truth, valid)

    def _classes(self, truth: Tensor) -> Tensor:
        """Number the classes (B, *S) of the voxels of ``truth`` (B, 1 or R, *S)."""
        if not self._has_regions:
            return truth[:, 0]
        regions = torch.arange(1, truth.shape[1] + 1, device=truth.device)
        return (truth * regions.view(-1, *[1] * (truth.ndim - 2))).amax(1).long()

    def _select(self, ranking: Tensor) -> Selected:
        """Weight the images of this process, ranked among those of all."""
        if self.images_per_rank is None:
            return self.envelope.select(ranking)
        # batches of ranks may differ in size, so fill up with what ranks as an image without
        # valid voxels
        padded = F.pad(ranking, (0, self.images_per_rank - len(ranking)), value=-torch.inf)
        gathered = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, padded)
        images = self.envelope.select(torch.cat(gathered))
        ours = images.weights.split(self.images_per_rank)[dist.get_rank()][: len(ranking)]
        # DDP averages over ranks what is to be summed
        return images._replace(weights=ours, total=images.total / len(gathered))

    def _dice(
        self, logits: Tensor, voxels: _Voxels, weights: Tensor | None, images: Selected
    ) -> Tensor:
        dice = self._single_scale.dc
        mask = voxels.valid
        if self.dice == "masked" and weights is not None:
            mask = weights
        if mask is not None:
            mask = mask[:, None]
        loss: Tensor
        if self.envelope.top_fraction == 1 and (dice.batch_dice or voxels.valid is None):
            loss = dice(logits, voxels.truth, mask)
        elif dice.batch_dice:
            # scales the sums of each image before they are added up
            by_image = images.weights.view(-1, *[1] * (logits.ndim - 1))
            loss = dice(logits, voxels.truth, by_image if mask is None else by_image * mask)
        else:
            masks = [None] * len(logits) if mask is None else mask.split(1)
            each = zip(logits.split(1), voxels.truth.split(1), masks, strict=True)
            loss = images.reduce(torch.stack([dice(*image) for image in each]))
        return loss

    @torch.no_grad()
    def _consult(self, net_output: Scales, target: Scales) -> Tensor | None:
        """Count the batch, and tell what is suspected of its images (B, 2, K), None if nothing."""
        if self.record is None or not self._cases:
            return None
        logits = net_output if isinstance(net_output, Tensor) else net_output[0]
        if self._to_be_counted:
            labels = target if isinstance(target, Tensor) else target[0]
            step = _observed_step(labels[:, 0])
            logits = logits.flatten(2)[..., ::step].float()
            voxels = self._voxels(logits, labels.flatten(2)[..., ::step])
            self.record.observe(self._cases, *self._membership(logits, voxels), voxels.valid)
            self._to_be_counted = False
        if self.suspected.keys().isdisjoint(self._cases):
            return None
        nothing = torch.zeros(2, self.record.num_classes, dtype=torch.bool)
        of_images = [self.suspected.get(case, nothing) for case in self._cases]
        return torch.stack(of_images).to(logits.device, non_blocking=True)

    def _membership(self, logits: Tensor, voxels: _Voxels) -> tuple[Tensor, Tensor]:
        """Probability of each class or region, and whether the label is it (B, K, *S)."""
        if self._has_regions:
            return logits.sigmoid(), voxels.truth.bool()
        shape = (1, -1, *[1] * (logits.ndim - 2))
        channels = torch.arange(logits.shape[1], device=logits.device).view(shape)
        return logits.softmax(1), voxels.truth == channels

    @torch.no_grad()
    def _unsuspicious(self, logits: Tensor, voxels: _Voxels, suspected: Tensor) -> Tensor:
        """Valid voxels (B, *S) whose labels do not rest on a suspected case's word alone."""
        assert self.record is not None
        probabilities, members = self._membership(logits, voxels)
        wrong = self.record.unsupported(probabilities.flatten(2), members.flatten(2), suspected)
        trusted = ~wrong.view_as(voxels.loss)
        return trusted if voxels.valid is None else trusted & voxels.valid

    @torch.no_grad()
    def _observe(self, weights: Tensor, voxels: _Voxels) -> None:
        step = _observed_step(weights)
        valid = None if voxels.valid is None else voxels.valid.flatten(1)[:, ::step]
        classes = self._classes(voxels.truth.flatten(2)[..., ::step])
        share = trimmed_share(weights.flatten(1)[:, ::step], classes, self.num_classes, valid)
        observed = torch.stack(share)
        self._observed = observed if self._observed is None else self._observed + observed

    def pop_observed(self) -> Tensor:
        """Take what was seen at full resolution since the last call, or since the beginning.

        Returns:
            Two rows of K classes (2, K), on the CPU: the share of the class that was left out,
            summed over batches with this class, and the number of these batches.
        """
        observed, self._observed = self._observed, None
        return torch.zeros(2, self.num_classes) if observed is None else observed.cpu()


def _observed_step(voxels: Tensor) -> int:
    # an odd step does not stay on one face of a patch
    return voxels.numel() // OBSERVED_VOXELS | 1


def _refuse_other_losses(loss: Any) -> None:
    if not isinstance(loss, DC_and_CE_loss | DC_and_BCE_loss):
        raise UserError(
            "The top-k / sigma loss works with nnU-Net's default losses only, DC_and_CE_loss "
            f"and DC_and_BCE_loss, but this trainer's loss is {type(loss).__name__}."
        )
    altered = ("weight", "pos_weight", "label_smoothing")
    for name in altered:
        value = getattr(loss.ce, name, None)
        if isinstance(value, Tensor) or value:
            raise UserError(
                f"The top-k / sigma loss needs a cross-entropy without {', '.join(altered)}, "
                f"because they change which voxels look wrong, but {name} is {value}."
            )
