"""Which cases have wrong labels, judged by how often a confident network contradicts them.

A network that has yet to learn a class is contradicted in all images alike; a structure that was
forgotten, or annotated where it is not, in some of them is contradicted there and nowhere else.
Confident disagreement as a sign of wrong labels is known from classification (Northcutt, Jiang,
Chuang, "Confident learning: estimating uncertainty in dataset labels", JAIR 70, 2021); judging each
case by its own record, against those of the others, is ours. Not seen are labels that are wrong
only where classes are hard to tell apart anyway, such as the course of a boundary, and errors that
most cases share. Mistaken for wrong is a minority of cases on which the network is surely wrong.
"""

from collections.abc import Iterable, Sequence
from math import log
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

CONFIDENT = 0.75
"""Probability of a class from which the network's word counts, and at one minus this it denies the
class; both as a share of the mean where the class is labelled, since a network that believes wrong
labels, too, is never surer of a class than it is right about them."""
SPREADS = 5.0
"""So many standard deviations of the other cases' log odds the record of a case must be above their
middle. Of a Gaussian one in three million is, and records' tails are longer than that."""
MIN_ODDS = 4.0
"""And so many times their odds, or a difference is too small to matter however alike they are."""
MIN_SHARE = 0.25
"""Below this share of contradicted voxels there is no evidence: networks err, too. Nor is there
where fewer are contradicted than this share of the voxels in which network and labels agree in the
middle one of the other cases: a few spots, where the class rightly lacks, are no structure."""
MAX_ERROR = 0.75
"""While more of the network's word is contradicted in the other cases, it knows nothing."""
PRIOR_VOXELS = 10
"""Voxels at the mean share that are added to every case, since voxels of a spot say the same."""
MIN_VOXELS = 20
"""Shares of fewer voxels, and fewer contradicted ones, tell nothing."""
MIN_CASES = 5
"""Among fewer cases none can stand out."""
DECAY = 0.8
"""What the counts of an epoch still weigh in the next; the network was worse when they arose."""

Kind = Literal["missing", "doubtful"]
KINDS: tuple[Kind, Kind] = ("missing", "doubtful")
"""The network sees the class where the label has none; the label has it where it sees none."""


class Suspect(NamedTuple):
    """A class in a case whose labels are contradicted.

    Attributes:
        case: Its identifier.
        label: Number of the class.
        kind: Whether the class seems to be missing, or to be where it is not.
        share: Contradicted share of the voxels, in which the network surely sees the class
            ("missing") or which are labelled so ("doubtful"), in [0, 1].
        voxels: Number of contradicted voxels that were looked at, recent epochs counting more.
    """

    case: str
    label: int
    kind: Kind
    share: float
    voxels: int


class Seen(NamedTuple):
    """What was counted in an epoch.

    Attributes:
        cases: Case -> voxels by kind (2, K, 2): those judged, and those of them contradicted.
        own: Sum of the probabilities of each class where it is labelled, and their number (K, 2).
    """

    cases: dict[str, Tensor]
    own: Tensor


class CaseRecord:
    """Counts, for every case and class, how often a confident network contradicts the labels.

    Args:
        num_classes: Number of classes K, each of which a voxel belongs to or not.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.total = Seen({}, torch.zeros(num_classes, 2, dtype=torch.float64))
        """Of all epochs, later ones counting more."""
        self._seen: list[tuple[Sequence[str], Tensor, Tensor]] = []

    @torch.no_grad()
    def observe(
        self,
        cases: Sequence[str],
        probabilities: Tensor,
        members: Tensor,
        valid: Tensor | None = None,
    ) -> None:
        """Look at a batch that is trained with, without waiting for the device.

        Args:
            cases: Identifier of each image; the same one may come several times.
            probabilities: Of each class (B, K, N voxels).
            members: Whether the label of a voxel is the class, boolean, same shape.
            valid: Voxels that count (B, N), boolean; all without it.
        """
        sure, denied = self._word_on(probabilities)
        if valid is not None:
            sure, members = sure & valid[:, None], members & valid[:, None]
        judged = torch.stack([sure, members], 1).sum(-1)
        contradicted = torch.stack([sure & ~members, members & denied], 1).sum(-1)
        own = torch.stack([(probabilities * members).sum((0, 2)), members.sum((0, 2))], 1)
        self._seen.append((cases, torch.stack([judged, contradicted], -1), own))

    def _word_on(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Where (B, K, N) the network surely sees a class, and where it surely does not."""
        sums, numbers = self.total.own.unbind(1)
        usual = (sums / numbers).nan_to_num(1.0).to(probabilities)[:, None]  # 1 if not seen yet
        return probabilities >= CONFIDENT * usual, probabilities <= (1 - CONFIDENT) * usual

    def unsupported(self, probabilities: Tensor, members: Tensor, suspected: Tensor) -> Tensor:
        """Mark the voxels (B, N) whose labels rest on a suspected case's word alone.

        These are the voxels without a class that is missing, unless the network surely does not
        see it either, and those of a doubtful class, unless it surely does. Less would not do: a
        network that learns from nearly as many wrong labels as right ones is seldom sure of either.

        Args:
            probabilities: Of each class (B, K, N).
            members: Whether the label of a voxel is the class, boolean, same shape.
            suspected: By kind and class (B, 2, K), boolean.
        """
        missing, doubtful = suspected[..., None].unbind(1)
        sure, denied = self._word_on(probabilities)
        return ((missing & ~denied & ~members) | (doubtful & ~sure & members)).any(1)

    def pop_seen(self) -> Seen:
        """Take what was counted since the last call, on the CPU."""
        seen, self._seen = self._seen, []
        total = Seen({}, torch.zeros(self.num_classes, 2, dtype=torch.float64))
        if seen:
            batches, counts, own = zip(*seen, strict=True)
            total.own.add_(torch.stack(own).sum(0).cpu())
            cases = [case for batch in batches for case in batch]
            _add(total.cases, zip(cases, torch.cat(counts).cpu().double(), strict=True))
        return total

    def close_epoch(self, parts: Iterable[Seen]) -> None:
        """Add what all processes counted in an epoch, so that former ones weigh less."""
        former = self.total
        cases = {case: DECAY * counts for case, counts in former.cases.items()}
        self.total = Seen(cases, DECAY * former.own)
        for part in parts:
            _add(self.total.cases, part.cases.items())
            self.total.own.add_(part.own)

    def suspected(self) -> dict[str, Tensor]:
        """Cases with evidence -> by kind and class (2, K), whether there is some."""
        found, _ = self._judge()
        return {
            case: each for case, each in zip(self.total.cases, found, strict=True) if each.any()
        }

    def suspects(self) -> list[Suspect]:
        """All evidence, the cases and classes with most contradicted voxels first."""
        found, shares = self._judge()
        cases = list(self.total.cases)
        rows = [
            Suspect(
                cases[number],
                label,
                KINDS[kind],
                float(shares[number, kind, label]),
                round(float(self.total.cases[cases[number]][kind, label, 1])),
            )
            for number, kind, label in found.nonzero().tolist()
        ]
        return sorted(rows, key=lambda suspect: -suspect.voxels)

    def _judge(self) -> tuple[Tensor, Tensor]:
        """Evidence and contradicted shares (cases, 2, K); shares are NaN where nothing is told."""
        if not self.total.cases:
            none = torch.zeros(0, len(KINDS), self.num_classes)
            return none.bool(), none
        judged, contradicted = torch.stack(list(self.total.cases.values())).unbind(-1)
        shares = (contradicted / judged).where(judged >= MIN_VOXELS, torch.nan)
        evident = torch.zeros_like(shares, dtype=torch.bool)
        for kind, label in np.ndindex(shares.shape[1:]):
            at = (slice(None), kind, label)
            evident[at] = stand_out(judged[at], contradicted[at])
        return evident, shares


def stand_out(judged: Tensor, contradicted: Tensor) -> Tensor:
    """Whether the record of a case differs from those of most others.

    The others are found from below: the half of the cases that is contradicted least, and then,
    again and again, whoever is within reach of these. A gap keeps wrong cases out, even if nearly
    half of all are; where there is none, everybody belongs to the others in the end. What is
    compared is the logarithm of odds: shares near 1 differ as those near 0 do.

    Args:
        judged: Voxels of each case (N,).
        contradicted: Those of them in which network and labels contradict each other (N,).
    """
    known = judged >= MIN_VOXELS
    mean = contradicted[known].sum() / judged[known].sum()
    if known.sum() < MIN_CASES or not 0 < mean < 1:
        return torch.zeros_like(known)
    agreed = judged - contradicted
    odds = (contradicted + PRIOR_VOXELS * mean) / (agreed + PRIOR_VOXELS * (1 - mean))
    evidence = odds.log()
    reach, others = evidence[known].median(), torch.zeros_like(known)
    while (grown := known & (evidence <= reach)).sum() > others.sum():
        others = grown
        quarter, middle = evidence[others].quantile(evidence.new_tensor([0.25, 0.5]))
        spread = (middle - quarter) / 0.6745  # as a Gaussian's standard deviation
        reach = reach.maximum(middle + (SPREADS * spread).clamp_min(log(MIN_ODDS)))
    if contradicted[others].sum() > MAX_ERROR * judged[others].sum():
        return torch.zeros_like(known)
    least = max(MIN_VOXELS, MIN_SHARE * float(agreed[others].median()))
    enough = (contradicted >= least) & (contradicted >= MIN_SHARE * judged)
    return known & ~others & enough


def _add(total: dict[str, Tensor], counts: Iterable[tuple[str, Tensor]]) -> None:
    for case, count in counts:
        total[case] = total[case] + count if case in total else count
