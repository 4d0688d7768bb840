"""The envelope around nnU-Net's own losses. Numbers in brackets: checks of the specification."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F  # noqa: N812
from nnunetv2.training.loss.compound_losses import (
    DC_and_BCE_loss,
    DC_and_CE_loss,
    DC_and_topk_loss,
)
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from nnunet_ext._common.errors import UserError
from nnunet_ext.losses import TopKSigmaCompoundLoss, TopKSigmaLoss
from nnunet_ext.losses.topk_sigma.envelope import trim

IGNORE = 3
NEXT_TO_NOTHING = 1e-9
"""A sigma that switches the envelope on, but leaves out no voxel of small maps."""


@dataclass(frozen=True)
class Case:
    """What nnU-Net's losses distinguish."""

    regions: bool = False
    ignore: bool = False
    batch_dice: bool = False
    deep_supervision: bool = False

    def __str__(self) -> str:
        return "-".join(name for name, value in vars(self).items() if value) or "classes"

    @property
    def channels(self) -> int:
        return 2 if self.regions else 3

    def stock(self, ddp: bool = False) -> Any:
        dice = {"batch_dice": self.batch_dice, "do_bg": self.regions, "smooth": 1e-5, "ddp": ddp}
        kind = {"dice_class": MemoryEfficientSoftDiceLoss}
        loss = (
            DC_and_BCE_loss({}, dice, use_ignore_label=self.ignore, **kind)
            if self.regions
            else DC_and_CE_loss(dice, {}, ignore_label=IGNORE if self.ignore else None, **kind)
        )
        return DeepSupervisionWrapper(loss, (2 / 3, 1 / 3, 0.0)) if self.deep_supervision else loss

    def ours(self, sigma: float, top_fraction: float, dice: Any = "masked", **more: Any) -> Any:
        per_rank = more.pop("images_per_rank", None)
        envelope = TopKSigmaLoss(sigma, top_fraction, num_classes=3, **more)
        return TopKSigmaCompoundLoss(self.stock(per_rank is not None), envelope, 3, dice, per_rank)

    def batch(self, images: int = 4, edge: int = 8, seed: int = 0) -> tuple[Any, Any]:
        """Draw logits and targets; with an ignore label, as many voxels in each image."""
        generator = torch.Generator().manual_seed(seed)
        scales = (edge, edge // 2, edge // 4) if self.deep_supervision else (edge,)
        logits, targets = [], []
        for size in scales:
            shape = (images, self.channels if self.regions else 1, size, size)
            target = torch.randint(self.channels, shape, generator=generator)
            ignored = torch.zeros(images, 1, size, size, dtype=torch.bool)
            ignored[..., -size // 4 :] = self.ignore
            if self.regions:
                target = target.bool()
                target = torch.cat([target, ignored], 1) if self.ignore else target
            else:
                target = target.masked_fill(ignored, IGNORE).to(torch.int16)
            targets.append(target)
            logits.append(torch.randn(images, self.channels, size, size, generator=generator))
        return self.as_given(logits), self.as_given(targets)

    def as_given(self, scales: list[Tensor]) -> Any:
        """What nnU-Net hands to its loss: a list only with deep supervision."""
        return scales if self.deep_supervision else scales[0]


CASES = [Case(*switches) for switches in product((False, True), repeat=4)]


def value_and_gradients(loss: Callable[..., Tensor], logits: Any, target: Any) -> list[Tensor]:
    logits = [each.clone().requires_grad_() for each in as_list(logits)]
    value = loss(logits if isinstance(target, list) else logits[0], target)
    value.backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in logits]
    return [value.detach(), *gradients]


def as_list(scales: Any) -> list[Tensor]:
    return scales if isinstance(scales, list) else [scales]


# ------------------------------------------------------------------------- equal to nnU-Net's [1]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_sigma_and_top_fraction_it_is_nnunets_loss(case: Case) -> None:
    batch = case.batch()
    ours = value_and_gradients(case.ours(0, 1), *batch)
    stock = value_and_gradients(case.stock(), *batch)
    assert all(map(torch.equal, ours, stock))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_evaluation_it_is_nnunets_loss(case: Case) -> None:
    batch = case.batch()
    ours = value_and_gradients(case.ours(0.3, 0.5).eval(), *batch)
    stock = value_and_gradients(case.stock(), *batch)
    assert all(map(torch.equal, ours, stock))


@pytest.mark.parametrize("top_fraction", [1, 0.99])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_envelope_that_leaves_nothing_out_changes_nothing(
    case: Case, top_fraction: float
) -> None:
    batch = case.batch()
    ours = value_and_gradients(case.ours(NEXT_TO_NOTHING, top_fraction), *batch)
    stock = value_and_gradients(case.stock(), *batch)
    torch.testing.assert_close(ours, stock, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", [Case(), Case(regions=True)], ids=str)
def test_without_dice_only_the_cross_entropy_remains(case: Case) -> None:
    logits, target = case.batch()
    if case.regions:
        plain = F.binary_cross_entropy_with_logits(logits, target.float())
    else:
        plain = F.cross_entropy(logits, target[:, 0].long())
    for sigma in (0, NEXT_TO_NOTHING):
        loss = case.ours(sigma, 1, "none")
        torch.testing.assert_close(loss(logits, target), plain)
        torch.testing.assert_close(loss.eval()(logits, target), plain)


@pytest.mark.parametrize("smoothing", ["gate", "integral", "hard"])
def test_without_dice_the_envelope_is_that_of_the_pixel_losses(smoothing: Any) -> None:
    logits, target = Case().batch()
    pixel_loss = F.cross_entropy(logits, target[:, 0].long(), reduction="none")
    expected = TopKSigmaLoss(0.2, 0.5, smoothing)(pixel_loss)
    loss = Case().ours(0.2, 0.5, "none", smoothing=smoothing)
    torch.testing.assert_close(loss(logits, target), expected)


# ------------------------------------------------------------------------------------------ Dice


def test_masked_dice_is_dice_of_the_kept_voxels() -> None:  # [17]
    logits, target = Case().batch(images=1)
    loss = Case().ours(0.2, 1, smoothing="hard")
    pixel_loss = F.cross_entropy(logits, target[:, 0].long(), reduction="none")
    kept = trim(pixel_loss, 0.2, "hard").weights.bool()
    assert 0 < int((~kept).sum()) < kept.numel()
    dice = Case().stock().dc(logits[:, :, kept[0]], target[:, :, kept[0]])
    torch.testing.assert_close(loss(logits, target), pixel_loss[kept].mean() + dice)


def test_plain_dice_is_dice_of_all_voxels() -> None:
    logits, target = Case().batch()
    loss, without = Case().ours(0.2, 1, "plain"), Case().ours(0.2, 1, "none")
    dice = loss(logits, target) - without(logits, target)
    torch.testing.assert_close(dice, Case().stock().dc(logits, target))


@pytest.mark.parametrize("form", ["masked", "plain"])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_sees_the_chosen_images_only(form: Any, batch_dice: bool) -> None:
    case = Case(batch_dice=batch_dice)
    logits, target = case.batch()
    loss = case.ours(0.2, 0.5, form, smoothing="hard")
    chosen = loss.envelope.select(
        trim(F.cross_entropy(logits, target[:, 0].long(), reduction="none"), 0.2, "hard").ranking
    ).weights.bool()
    assert int(chosen.sum()) == 2
    alone = case.ours(0.2, 1, form, smoothing="hard")(logits[chosen], target[chosen])
    torch.testing.assert_close(loss(logits, target), alone)


def test_images_without_foreground_do_not_look_hard() -> None:
    target = torch.zeros(2, 1, 8, 8, dtype=torch.int64)
    target[0, :, :4] = 1
    right = F.one_hot(target[:, 0], 3).movedim(-1, 1) * 12.0
    right[0] /= 4  # less sure of the image that has foreground
    stock_dice = [float(Case().stock().dc(right[i : i + 1], target[i : i + 1])) for i in (0, 1)]
    assert stock_dice[1] > -0.1  # what would mislead a ranking of the sum
    assert stock_dice[0] < -0.4
    loss = Case().ours(0, 0.5, smoothing="hard")
    right.requires_grad_()
    loss(right, target).backward()
    assert right.grad is not None
    assert right.grad[0].any()
    assert not right.grad[1].any()


# ---------------------------------------------------------------------------------- ignore label


@pytest.mark.parametrize("case", [c for c in CASES if c.ignore], ids=str)
@pytest.mark.parametrize("dice", ["masked", "plain", "none"])
@pytest.mark.parametrize("scope", ["image", "class", "batch"])
def test_what_is_ignored_changes_nothing_and_has_no_gradient(
    case: Case, dice: Any, scope: Any
) -> None:  # [12]
    logits, target = case.batch()
    other_logits, other_target = [], []
    masks = []
    for x, y in zip(as_list(logits), as_list(target), strict=True):
        ignored = y[:, -1:].bool() if case.regions else y == IGNORE
        masks.append(ignored)
        other_logits.append(torch.where(ignored, 5 - 3 * x, x))
        other_target.append(y.clone())
        if case.regions:
            other_target[-1][:, :-1] ^= ignored
    loss = case.ours(0.2, 0.5, dice, scope=scope)
    other = case.as_given(other_logits), case.as_given(other_target)
    value, *gradients = value_and_gradients(loss, logits, target)
    other_value, *other_gradients = value_and_gradients(loss, *other)
    torch.testing.assert_close(value, other_value)
    for gradient, other_gradient, ignored in zip(gradients, other_gradients, masks, strict=True):
        assert not gradient[ignored.expand_as(gradient)].any()
        torch.testing.assert_close(gradient, other_gradient)


@pytest.mark.parametrize("case", [c for c in CASES if c.ignore], ids=str)
@pytest.mark.parametrize("images", [1, 2])
def test_images_that_are_all_ignored_leave_the_others_alone(
    case: Case, images: int
) -> None:  # [12]
    logits, target = case.batch(images=2)
    for y in as_list(target):
        if case.regions:
            y[:images, -1] = True
        else:
            y[:images] = IGNORE
    loss = case.ours(0.2, 0.9)
    value, *gradients = value_and_gradients(loss, logits, target)
    assert value.isfinite()
    assert not any(gradient[:images].any() for gradient in gradients)
    if images == 1:
        rest = (case.as_given([x[1:] for x in as_list(both)]) for both in (logits, target))
        expected = value_and_gradients(case.ours(0.2, 0.9), *rest)
        torch.testing.assert_close([value, *(g[1:] for g in gradients)], expected)


# ------------------------------------------------------------------------------ deep supervision


@pytest.mark.parametrize("case", [c for c in CASES if c.deep_supervision], ids=str)
def test_all_scales_train_the_images_that_full_resolution_chose(case: Case) -> None:  # [14]
    logits, target = case.batch()
    logits[1] = 3 * logits[1].flip(0)  # alone, the lower resolution would choose others
    loss = case.ours(0.1, 0.5, smoothing="hard")
    _, full, half, unused = value_and_gradients(loss, logits, target)
    chosen = full.flatten(1).any(1)
    assert int(chosen.sum()) == 2
    assert torch.equal(half.flatten(1).any(1), chosen)
    assert not unused.any()


def test_each_scale_leaves_out_voxels_of_its_own_and_keeps_its_weight() -> None:
    case = Case(deep_supervision=True)
    logits, target = case.batch()
    each = [Case().ours(0.2, 1)(x, y) for x, y in zip(logits, target, strict=True)]
    expected = 2 / 3 * each[0] + 1 / 3 * each[1]
    torch.testing.assert_close(case.ours(0.2, 1)(logits, target), expected)


def test_a_scale_of_one_voxel_works() -> None:  # [14]
    case = Case(deep_supervision=True)
    values = value_and_gradients(case.ours(0.5, 0.5), *case.batch(edge=2))
    assert all(value.isfinite().all() for value in values)
    assert values[2].any()


# --------------------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize("case", [Case(), Case(regions=True, batch_dice=True)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_changes_little(case: Case, dtype: torch.dtype) -> None:  # [16]
    logits, target = case.batch(edge=32)
    loss = case.ours(0.05, 0.5)
    with torch.autocast("cpu", dtype):
        half = loss(logits.to(dtype), target)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss(logits, target), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("case", [Case(), Case(regions=True), Case(ignore=True)], ids=str)
@pytest.mark.parametrize("smoothing", ["gate", "integral", "hard"])
def test_extreme_logits_are_finite(case: Case, smoothing: Any) -> None:  # [16]
    logits, target = case.batch()
    extreme = 1e4 * logits.sign()
    for sigma in (0.02, 0.5):
        loss = case.ours(sigma, 0.5, smoothing=smoothing)
        assert all(x.isfinite().all() for x in value_and_gradients(loss, extreme.half(), target))


# ---------------------------------------------------------------------------------------- classes


def test_the_class_of_a_voxel_in_regions_is_the_last_that_contains_it() -> None:
    loss = Case(regions=True).ours(0.1, 1)
    regions = torch.tensor([[[0, 1, 1, 0]], [[0, 0, 1, 1]]]).movedim(0, 1)
    assert loss._classes(regions).tolist() == [[0, 1, 2, 2]]


@pytest.mark.parametrize("regions", [False, True])
def test_what_was_left_out_is_averaged_over_batches_with_the_class(regions: bool) -> None:
    loss = Case(regions=regions).ours(0.5, 1, smoothing="hard")
    # class 2 has the higher losses in the first batch and is absent from the second
    labels = torch.zeros(2, 1, 4, 4, dtype=torch.int64)
    labels[0, :, :, 2:] = 2
    for target in labels.split(1):
        truth = torch.cat([target > 0, target == 2], 1) if regions else target
        logits = torch.zeros(1, 2 if regions else 3, 4, 4)
        logits[:, 0] = -4.0 if regions else 4.0
        logits += 1e-3 * torch.arange(16).view(4, 4)  # breaks ties among equal losses
        loss(logits.contiguous(), truth)
    share, batches = loss.pop_observed()
    assert batches.tolist() == [2, 0, 1]
    assert share.tolist() == [0.5, 0, 1]  # nothing of class 0 in the first, half in the second
    assert not loss.pop_observed().any()


def test_many_voxels_are_observed_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "nnunet_ext.losses.topk_sigma.compound.OBSERVED_VOXELS"
    loss, (logits, target) = Case().ours(0.2, 1), Case().batch(edge=64)
    loss(logits, target)
    exact = loss.pop_observed()
    monkeypatch.setattr(module, 4000)
    loss(logits, target)
    torch.testing.assert_close(loss.pop_observed(), exact, atol=0.05, rtol=0)


# ------------------------------------------------------------------------------ several processes

RANKED = [
    *(
        (case, dice, smoothing, (2, 1))  # as nnU-Net spreads three images over two processes
        for case in (Case(ignore=True), Case(deep_supervision=True), Case(regions=True))
        for dice in ("masked", "plain", "none")
        for smoothing in ("gate", "integral", "hard")
    ),
    # nnU-Net's batch Dice needs batches of one size
    (Case(batch_dice=True), "masked", "gate", (2, 2)),
]


def _whole_batch(case: Case, sizes: tuple[int, ...]) -> tuple[Any, Any]:
    """A batch whose last image, which is on the last rank, has no valid voxel if possible."""
    logits, target = case.batch(images=sum(sizes))
    if case.ignore:
        target[-1] = IGNORE
    return logits, target


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for case, dice, smoothing, sizes in RANKED:
        loss = case.ours(0.2, 0.5, dice, smoothing=smoothing, images_per_rank=max(sizes))
        logits, target = (
            case.as_given([each.split(sizes)[rank] for each in as_list(scales)])
            for scales in _whole_batch(case, sizes)
        )
        results.append(value_and_gradients(loss, logits, target))
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(results))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_equal_one_on_the_whole_batch(tmp_path: Path) -> None:  # [15]
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    ranks = [pickle.loads((tmp_path / f"{rank}.pickle").read_bytes()) for rank in (0, 1)]
    for (case, dice, smoothing, sizes), first, second in zip(RANKED, *ranks, strict=True):
        loss = case.ours(0.2, 0.5, dice, smoothing=smoothing)
        expected = value_and_gradients(loss, *_whole_batch(case, sizes))
        averages = [
            (first[0] + second[0]) / 2,
            # an image is on one rank only; averaging over ranks halves its gradient
            *(torch.cat(each) / 2 for each in zip(first[1:], second[1:], strict=True)),
        ]
        torch.testing.assert_close(averages, expected, atol=1e-6, rtol=1e-5)


# -------------------------------------------------------------------------------------- bad input


def test_losses_other_than_nnunets_default_ones_are_refused() -> None:
    with pytest.warns(UserWarning, match="size_average"):
        other = DC_and_topk_loss({"ddp": False}, {"k": 10})
    with pytest.raises(UserError, match="DC_and_topk_loss"):
        TopKSigmaCompoundLoss(other, TopKSigmaLoss(), 3)


@pytest.mark.parametrize(
    "altered", [{"label_smoothing": 0.1}, {"weight": torch.tensor([1.0, 2.0, 2.0])}]
)
def test_cross_entropies_that_change_the_ranking_are_refused(altered: dict[str, Any]) -> None:
    stock = DC_and_CE_loss({"ddp": False}, altered)
    with pytest.raises(UserError, match=f"without weight.*but {next(iter(altered))} is"):
        TopKSigmaCompoundLoss(stock, TopKSigmaLoss(), 3)


def test_an_unknown_way_to_treat_dice_is_refused() -> None:
    with pytest.raises(ValueError, match="dice must be one of masked, plain, none, got 'soft'"):
        TopKSigmaCompoundLoss(Case().stock(), TopKSigmaLoss(), 3, "soft")


@pytest.mark.parametrize("batch_dice", [False, True])
def test_a_compiled_dice_stays_in_use(batch_dice: bool) -> None:
    torch._dynamo.reset()
    case = Case(batch_dice=batch_dice)
    loss, (logits, target) = case.ours(0.2, 0.5), case.batch()
    expected = loss(logits, target)
    counter = CompileCounter()
    loss.stock.dc = torch.compile(loss.stock.dc, backend=counter)  # as nnU-Net does
    torch.testing.assert_close(loss(logits, target), expected)
    assert counter.frame_count > 0
