"""Telling cases with wrong labels: on simulated labels whose noise is known."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nnunet_ext.losses import CaseRecord
from nnunet_ext.losses.topk_sigma.noise import MIN_CASES, MIN_VOXELS, stand_out

IMAGES = 20
VOXELS = 3_000
CLASSES = 3
CASES = [f"case_{number:02d}" for number in range(IMAGES)]


def simulate(
    missing: float = 0.0, extra: float = 0.0, calibrated: bool = True, share: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Probabilities (B, K, N) and labels (B, N).

    Class probabilities are steep functions of a coordinate, as across a boundary, so labels
    contradict the network near it. In the first images class 2 is missing, in the last ones the
    first voxels are labelled 1 though nothing is there. A calibrated network believes in what is
    missing only as often as it is labelled; the other has learned to ignore wrong labels.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (IMAGES, VOXELS)
    depth = torch.rand(shape, generator=generator) * 10
    kind = torch.rand(shape, generator=generator)
    truth = (kind < 2 * share).long() + (kind < share).long()
    logits = torch.zeros(IMAGES, CLASSES, VOXELS).scatter_(1, truth[:, None], depth[:, None])
    probabilities = logits.softmax(1)
    flat = probabilities.movedim(1, -1).flatten(0, 1)
    labels = torch.multinomial(flat, 1, generator=generator).view(shape)
    forgotten = torch.arange(IMAGES)[:, None] < round(missing * IMAGES)
    labels = labels.masked_fill(forgotten & (labels == 2), 0)
    labels[IMAGES - round(extra * IMAGES) :, : VOXELS // 2] = 1
    if calibrated:
        moved = missing * probabilities[:, 2]
        probabilities[:, 0] += moved
        probabilities[:, 2] -= moved
    return probabilities, labels


def members(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, CLASSES).movedim(-1, 1).bool()


def record_of(
    probabilities: Tensor, labels: Tensor, valid: Tensor | None = None, parts: int = 1
) -> CaseRecord:
    """The record after two epochs, counted by two processes."""
    record, other = CaseRecord(CLASSES), CaseRecord(CLASSES)
    for _epoch in range(2):
        for number, part in enumerate(torch.arange(len(labels)).tensor_split(parts)):
            (record, other)[number % 2].observe(
                [CASES[image] for image in part],
                probabilities[part],
                members(labels[part]),
                None if valid is None else valid[part],
            )
        seen = [record.pop_seen(), other.pop_seen()]
        record.close_epoch(seen)
        other.close_epoch(seen)
    return record


@pytest.mark.parametrize("calibrated", [True, False], ids=["believes_labels", "ignores_noise"])
@pytest.mark.parametrize("missing", [0.05, 0.15, 0.45])
def test_the_cases_with_missing_labels_are_named_and_no_others(
    missing: float, calibrated: bool
) -> None:
    suspects = record_of(*simulate(missing, calibrated=calibrated)).suspects()
    assert {suspect.case for suspect in suspects} == set(CASES[: round(missing * IMAGES)])
    assert {(suspect.label, suspect.kind) for suspect in suspects} == {(2, "missing")}
    assert min(suspect.share for suspect in suspects) > 0.9


@pytest.mark.parametrize("extra", [0.05, 0.45])
def test_the_cases_with_labels_where_nothing_is_are_named_and_no_others(extra: float) -> None:
    suspects = record_of(*simulate(extra=extra)).suspects()
    assert {suspect.case for suspect in suspects} == set(CASES[-round(extra * IMAGES) :])
    assert (1, "doubtful") in {(suspect.label, suspect.kind) for suspect in suspects}


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
def test_labels_that_are_only_uncertain_at_boundaries_are_no_evidence(share: float) -> None:
    assert not record_of(*simulate(share=share)).suspected()


def test_a_network_that_errs_everywhere_accuses_nobody() -> None:
    probabilities, labels = simulate()
    assert not record_of(probabilities[:, [0, 2, 1]], labels).suspected()


def test_the_worst_come_first_with_their_numbers() -> None:
    probabilities, labels = simulate()
    for image, voxels in ((3, 900), (7, 1800)):
        labels[image, :voxels] = labels[image, :voxels].masked_fill(labels[image, :voxels] == 2, 0)
    first, second = record_of(probabilities, labels).suspects()
    assert (first.case, second.case) == (CASES[7], CASES[3])
    assert first.voxels > second.voxels >= MIN_VOXELS
    assert 0.25 <= second.share < first.share < 0.8


def test_what_a_worse_network_said_is_forgotten() -> None:
    probabilities, labels = simulate(missing=0.1, calibrated=False)
    record = record_of(probabilities, labels)
    assert len(record.suspected()) == 2
    for _ in range(15):
        record.observe(CASES, members(labels).float(), members(labels))
        record.close_epoch([record.pop_seen()])
    assert not record.suspected()


@given(parts=st.integers(1, 7))
def test_it_does_not_matter_who_counts_which_images(parts: int) -> None:
    data = simulate(0.4)
    assert record_of(*data, parts=parts).suspects() == record_of(*data).suspects()


def test_invalid_voxels_do_not_count() -> None:
    probabilities, labels = simulate(missing=0.2)
    wrong = members(labels)[:, 0] & (probabilities[:, 2] > 0.3)
    assert not record_of(probabilities, labels, ~wrong).suspected()


def test_few_cases_or_voxels_tell_nothing() -> None:
    probabilities, labels = simulate(missing=0.1)
    few = slice(0, MIN_CASES - 1)
    assert not record_of(probabilities[few], labels[few]).suspected()
    assert not record_of(probabilities[..., :100], labels[..., :100]).suspected()
    assert not CaseRecord(CLASSES).suspects()


# --------------------------------------------------------------- counts as trainings have them


def counts(
    middle: float, ninth: float, cases: int = 95, voxels: int = 500, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Judged and contradicted voxels of cases whose share has this median and ninth decile."""
    log_odds = torch.tensor([middle, ninth]).logit()
    generator = torch.Generator().manual_seed(seed)
    spread = (log_odds[1] - log_odds[0]) / 1.2816
    shares = (log_odds[0] + spread * torch.randn(cases, generator=generator)).sigmoid()
    judged = torch.randint(voxels // 3, 2 * voxels, (cases,), generator=generator).double()
    return judged, torch.binomial(judged, shares.double(), generator=generator)


def with_wrong(
    clean: tuple[Tensor, Tensor], share: float, cases: int, voxels: int = 450
) -> tuple[Tensor, Tensor]:
    judged = torch.full((cases,), float(voxels), dtype=torch.float64)
    return torch.cat([clean[0], judged]), torch.cat([clean[1], (share * judged).round()])


@pytest.mark.parametrize(
    ("middle", "ninth", "wrong"),
    [(0.62, 0.73, 1.0), (0.33, 0.56, 1.0), (0.1, 0.2, 0.75)],
    ids=["missing_early", "missing_later", "doubtful"],
)
@pytest.mark.parametrize("cases", [1, 8, 65, 85])
def test_measured_records_tell_wrong_cases_from_others(
    middle: float, ninth: float, wrong: float, cases: int
) -> None:
    """As seen where label 2 of the hippocampus was missing in 65 of 160 cases, after 480 steps."""
    named = stand_out(*with_wrong(counts(middle, ninth), wrong, cases))
    assert named[95:].all()
    assert not named[:95].any()


@given(st.sampled_from([(0.62, 0.73), (0.33, 0.56), (0.03, 0.1)]), st.integers(0, 2**31))
def test_records_of_clean_labels_name_nearly_nobody(
    quantiles: tuple[float, float], seed: int
) -> None:
    assert stand_out(*counts(*quantiles, cases=160, seed=seed)).sum() <= 1


def test_a_network_that_knows_nothing_names_nobody() -> None:
    assert not stand_out(*with_wrong(counts(0.96, 0.98), 1.0, 65)).any()


def test_a_few_spots_where_nothing_is_are_no_missing_structure() -> None:
    """In a case that rightly lacks the class, all that the network sees of it is contradicted."""
    clean = counts(0.2, 0.4)
    assert not stand_out(*with_wrong(clean, 1.0, 20, voxels=60)).any()
    assert stand_out(*with_wrong(clean, 1.0, 20, voxels=300)).sum() == 20


@given(st.permutations(range(160)))
def test_the_order_of_cases_changes_nothing(order: list[int]) -> None:
    judged, contradicted = with_wrong(counts(0.33, 0.56), 1.0, 65)
    named = stand_out(judged, contradicted)
    assert (stand_out(judged[order], contradicted[order]) == named[order]).all()


@pytest.mark.parametrize(
    ("seen", "left_out"),
    [
        # of class 1: where the network surely sees it, and where it surely does not
        ([0.1, 0.9, 0.1, 0.9], [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0]]),
        # where it is not sure, a suspected label has no support either
        ([0.5, 0.5, 0.5, 0.5], [[0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]),
    ],
)
def test_what_rests_on_a_suspected_label_alone_is_left_out(
    seen: list[float], left_out: list[list[int]]
) -> None:
    probabilities = torch.tensor([[1 - p for p in seen], seen]).expand(4, 2, 4)
    labels = torch.tensor([0, 0, 1, 1])
    suspected = torch.zeros(4, 2, 2, dtype=torch.bool)  # nothing, class 1 missing, doubtful, both
    suspected[1, 0, 1] = suspected[2, 1, 1] = suspected[3, :, 1] = True
    is_member = torch.stack([labels == 0, labels == 1]).expand(4, 2, 4)
    found = CaseRecord(2).unsupported(probabilities, is_member, suspected)
    assert found.int().tolist() == left_out
