"""What there is: every trainer and planner, ours and other packages'; imports no torch.

A method is one entry of :data:`TRAINERS`. Look-up, settings, planners, ``nnunet-ext list`` and the
README's tables derive from it. Classes of other packages are found by entry points of two groups,
``nnunet_ext.trainers`` and ``nnunet_ext.planners`` (name -> class).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from nnunet_ext._common.errors import UserError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint  # takes hundredths of a second at run time

Kind = Literal["trainers", "planners"]
"""As in the names of our rooms and of the groups of entry points."""

LENGTH_SUFFIX = re.compile(r"(?P<base>.+)_(?P<epochs>[1-9]\d*)epochs?")
"""nnU-Net's suffix for the length of training, which every trainer's name may have."""

TWIN = re.compile(r"ExtensionTrainer\w+")
"""Names that may be those of twins of nnU-Net's trainers; only a search in its tree tells."""


def without_length(name: str) -> str:
    """Take a suffix like ``_250epochs`` off the name of a trainer."""
    match = LENGTH_SUFFIX.fullmatch(name)
    return match["base"] if match else name


@dataclass(frozen=True)
class Entry:
    """A trainer or planner.

    Attributes:
        name: What stands behind ``-tr`` or ``-pl``.
        module: Where its class is.
        purpose: Which problem it is for, in a line.
        cost: What it costs beside stock nnU-Net or stock plans.
    """

    name: str
    module: str
    purpose: str
    cost: str = ""


@dataclass(frozen=True)
class Planner(Entry):
    """A planner.

    Attributes:
        plans: Name of its plans, which stands behind ``-p``.
        method: Whose memory it counts, or nothing.
        residual: Whether it plans residual encoders.
    """

    plans: str = "PLANS"
    method: str = ""
    residual: bool = False


@dataclass(frozen=True)
class Trainer(Entry):
    """A trainer.

    Attributes:
        paper: Whose method it is.
        link: To the paper.
        settings: Method -> settings class, or ``module:Class``, of all methods that it reads.
        memory: What its method holds in memory beside the planned U-Net. If this is not empty,
            the method has planners that count it.
    """

    paper: str = ""
    link: str = ""
    settings: Mapping[str, str | type] = field(default_factory=dict)
    memory: str = ""

    @property
    def settings_classes(self) -> dict[str, type]:
        """Method -> settings class."""
        return {
            method: load(cls) if isinstance(cls, str) else cls
            for method, cls in self.settings.items()
        }

    @property
    def planners(self) -> list[Planner]:
        """The planners of its method: of plain-conv U-Nets first, then of residual encoders."""
        if not self.memory:
            return []
        (method,), stem = self.settings, self.name.removesuffix("Trainer")
        plain = f"plain-conv U-Nets that fit the memory of {self.memory}"
        residual = f"as {stem}Planner with residual encoders (ResEnc M)"
        return [
            Planner(
                f"{stem}{kind}Planner",
                "nnunet_ext.planners.method",
                residual if kind else plain,
                f"patches or batches smaller than {'ResEnc M' if kind else 'stock'} where memory "
                "is short",
                f"{stem}{kind}Plans",
                method,
                bool(kind),
            )
            for kind in ("", "ResEnc")
        ]


TRAINERS = {
    trainer.name: trainer
    for trainer in (
        Trainer(
            name="CateNormTrainer",
            module="nnunet_ext.trainers.catenorm",
            purpose="plans with batch normalisation (not nnU-Net's default) that background or "
            "pooled domains dominate",
            cost="about 2.5x stock time per step in the second half",
            paper="Xiao et al., CateNorm, DART 2022",
            link="https://arxiv.org/abs/2103.15858",
            settings={"catenorm": "nnunet_ext.settings.catenorm:CateNormSettings"},
            memory="CateNorm's second pass",
        ),
        Trainer(
            name="ConDSegTrainer",
            module="nnunet_ext.trainers.condseg",
            purpose="boundaries are soft, contrast is low, context misleads",
            cost="about 1.6x stock time per step; prediction 1.4x (2D), 1.0x to 1.3x (3D)",
            paper="Lei et al., ConDSeg, AAAI 2025",
            link="https://arxiv.org/abs/2412.08345",
            settings={"condseg": "nnunet_ext.settings.condseg:ConDSegSettings"},
            memory="ConDSeg's decoder and attention",
        ),
        Trainer(
            name="RAMDSIRTrainer",
            module="nnunet_ext.trainers.ram_dsir",
            purpose="the model must work on scanners or sites that it never saw",
            cost="two views: about 1.9x stock time per step",
            paper="Zhou et al., RAM-DSIR, ECCV 2022",
            link="https://arxiv.org/abs/2208.03901",
            settings={"ram_dsir": "nnunet_ext.settings.ram_dsir:RAMDSIRSettings"},
            memory="RAM-DSIR's two views",
        ),
        Trainer(
            name="MindTheGapTrainer",
            module="nnunet_ext.trainers.mind_the_gap",
            purpose="labels are in one modality, only images in the other",
            cost="two batches per step, after training a translator",
            paper="Su et al., Mind the Gap, IEEE JBHI 27(7), 2023",
            link="https://arxiv.org/abs/2205.11888",
            settings={"mind_the_gap": "nnunet_ext.settings.mind_the_gap:MindTheGapSettings"},
            memory="Mind the Gap's batches of two domains",
        ),
        Trainer(
            name="TopKSigmaTrainer",
            module="nnunet_ext.trainers.topk_sigma",
            purpose="labels are systematically wrong in some cases, which it lists",
            cost="about stock time per step",
            paper="Top-k / bottom-all-but-sigma loss, Diagnostics 15, 2025",
            link="https://doi.org/10.3390/diagnostics15172189",
            settings={"topk_sigma": "nnunet_ext.settings.topk_sigma:TopKSigmaSettings"},
        ),
        Trainer(
            name="CateNormTopKSigmaTrainer",
            module="nnunet_ext.trainers.topk_sigma",
            purpose="what CateNormTrainer and TopKSigmaTrainer are for, both at once",
            cost="as CateNormTrainer",
            paper="as CateNormTrainer and TopKSigmaTrainer",
            settings={
                "topk_sigma": "nnunet_ext.settings.topk_sigma:TopKSigmaSettings",
                "catenorm": "nnunet_ext.settings.catenorm:CateNormSettings",
            },
        ),
        Trainer(
            name="ExtensionTrainer",
            module="nnunet_ext.trainers.base",
            purpose="a fair baseline: stock nnU-Net with settings from the plans",
            cost="as stock nnU-Net",
            paper="Isensee et al., nnU-Net, Nature Methods 18, 2021",
            link="https://doi.org/10.1038/s41592-020-01008-z",
        ),
    )
}
"""Our trainers by name; twins of nnU-Net's and lengths of training are made on demand."""

PLANNERS = {
    planner.name: planner
    for planner in (
        *(planner for trainer in TRAINERS.values() for planner in trainer.planners),
        Planner(
            name="CompactPlanner",
            module="nnunet_ext.planners.base",
            purpose="small networks, patches and batches for a laptop or CPU, for any trainer",
            cost="a small fraction of the stock plan's time and memory",
            plans="CompactPlans",
        ),
    )
}
"""Our planners by name."""

OURS: dict[Kind, Mapping[str, Entry]] = {"trainers": TRAINERS, "planners": PLANNERS}

METHODS = tuple(dict.fromkeys(method for each in TRAINERS.values() for method in each.settings))
"""Names under which the plans hold the settings of our methods."""


def settings_classes() -> dict[str, type]:
    """Our methods -> settings class."""
    return {m: cls for each in TRAINERS.values() for m, cls in each.settings_classes.items()}


def load(path: str) -> Any:
    """Import what stands at ``module:name``."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


# --------------------------------------------------------------------------------- other packages


@cache
def others(kind: Kind) -> "dict[str, EntryPoint]":
    """Entry points of other packages by the name of their class; imports none of these.

    Where packages use the same name, the one that Python finds first has it.
    """
    from importlib.metadata import distributions

    found: dict[str, EntryPoint] = {}
    for distribution in distributions():
        try:
            points = distribution.entry_points.select(group=f"nnunet_ext.{kind}")
        except Exception:  # of whatever package: its damaged metadata must not harm anybody else
            continue
        for point in points:
            found.setdefault(point.name, point)
    return found


def load_other(point: "EntryPoint") -> Any:
    """Import a class of another package.

    Raises:
        UserError: If that fails, in whatever way.
    """
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{point.name} of {package_of(point)} cannot be imported from {point.value}: "
            f"{type(error).__name__}: {error}"
        ) from error


def package_of(point: "EntryPoint") -> str:
    """Name of the package that an entry point comes with."""
    return point.dist.name if point.dist else "an unknown package"


def others_settings() -> dict[str, dict[str, type]]:
    """Other packages' trainers -> method -> settings class; imports those that can be imported."""
    found = {}
    for name, point in others("trainers").items():
        try:
            found[name] = settings_read_by(load_other(point))
        except UserError:  # whoever asks for this trainer is told
            continue
    return found


def settings_read_by(trainer: Any) -> dict[str, type]:
    """Method -> settings class of a trainer class; nothing if it reads none from the plans."""
    collected: dict[str, type] = getattr(trainer, "collected_method_settings", dict)()
    return collected
