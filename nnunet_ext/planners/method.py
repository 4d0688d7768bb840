"""Planning for the memory of a method, which is simulated.

nnU-Net's planner counts feature maps, and knows how many of them a GPU holds when stock nnU-Net is
trained. A simulation says how many bytes these are; a method's own step may hold as many.
"""

import copy
from collections.abc import Sequence
from math import floor, isclose, prod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E501
    nnUNetPlannerResEncM,
)
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunet_ext.memory.limits import static
from nnunet_ext.memory.peaks import simulate
from nnunet_ext.memory.steps import Training
from nnunet_ext.nnunet import lookup
from nnunet_ext.planners.base import ExtensionPlanner
from nnunet_ext.registry import TRAINERS, Planner

MOST = 4.0
"""No method holds more than so many times what stock nnU-Net does."""
GUESSES = {
    "CateNormTrainer": 1.4,
    "ConDSegTrainer": 1.25,
    "RAMDSIRTrainer": 1.8,
    "MindTheGapTrainer": 2.1,
}
"""Where the search begins. Only its length depends on them: every plan is simulated."""
GUESS = 1.5
"""Likewise, for others."""
ROUNDS = 4
"""So many patches are tried at most; the first or second is usually the last."""
SPARE = 0.005
"""Share of the memory that may be missed by, where a batch is not simulated anew."""
ALIKE = 0.01
"""Factors that differ by less lead to the same plan."""
FILLED = 0.85
"""Share of the memory from which a plan is not tried with a larger patch."""

Plan = dict[str, Any]


class Held(NamedTuple):
    """What training holds, in bytes.

    Attributes:
        static: What no size of batch and patch changes.
        per_image: The rest, for each image of a batch.
    """

    static: float
    per_image: float

    def at(self, batch: int) -> float:
        """Bytes for a batch of so many images."""
        return self.static + self.per_image * batch


class Target(NamedTuple):
    """What stock nnU-Net holds where it fills the memory that is planned for, in bytes.

    Attributes:
        total: All of it.
        static: As in :class:`Held`.
        per_feature: The rest, for each element of a feature map as nnU-Net counts them.
    """

    total: float
    static: float
    per_feature: float


class MethodPlanner(ExtensionPlanner):
    """Plans stock networks that a method can train in the memory that is planned for.

    Where images and data set limit patch and batch, not memory, plans are those of stock nnU-Net.
    """

    trainer_name: ClassVar[str]
    """Whose memory counts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._factor = 1.0  # what the method holds, over what stock nnU-Net does
        self._factors: dict[int, float] = {}  # by dimensions of the patch
        self._targets: dict[int, Target] = {}
        self._features: dict[str, int] = {}  # elements of feature maps of an image
        self._simulated: dict[str, Held] = {}
        self._phases: dict[tuple[Any, int], str] = {}  # that hold most, by trainer and dimensions

    def static_estimate_VRAM_usage(self, *args: Any, **kwargs: Any) -> int:  # noqa: N802
        """Estimate memory of the method in nnU-Net's unit, elements of feature maps."""
        patch_size, *_, arguments, _ = args
        key = _size({"patch_size": patch_size, "architecture": {"arch_kwargs": arguments}})
        if key not in self._features:
            self._features[key] = super().static_estimate_VRAM_usage(*args, **kwargs)
        return round(self._factor * self._features[key])

    def get_plans_for_configuration(self, *args: Any) -> Plan:
        """Plan as nnU-Net does, with the memory that the method needs."""
        dim = len(args[0])
        if dim not in self._targets:
            stock, least = (self._plan(factor, args) for factor in (1.0, MOST))
            if (_size(stock), stock["batch_size"]) == (_size(least), least["batch_size"]):
                self._build(stock)
                return stock
            self._targets[dim] = self._target(stock)
            guess = GUESSES.get(self.trainer_name, GUESS)
            self._factors[dim] = max(self._factors.values(), default=guess)
        target = self._targets[dim]
        plans: dict[str, Plan] = {}
        for _ in range(ROUNDS):
            factor = self._factors[dim]
            plan = self._plan(factor, args)
            if _size(plan) in plans:
                break
            held, batch = self._held(plan), plan["batch_size"]
            as_stock = target.per_feature * self._features[_size(plan)] * batch
            self._factors[dim] = (held.at(batch) - target.static) / as_stock
            allowed = round(args[3] * self.max_dataset_covered / prod(plan["patch_size"]))
            fitting = floor(((1 - SPARE) * target.total - held.static) / held.per_image)
            plan["batch_size"] = max(min(fitting, allowed), self.UNet_min_batch_size)
            plans[_size(plan)] = plan
            if isclose(factor, self._factors[dim], rel_tol=ALIKE):
                break
        held_by = {self._held(plan).at(plan["batch_size"]): plan for plan in plans.values()}
        within = [held for held in held_by if held <= target.total]
        # without any, memory is too short for the smallest batch of the smallest patch
        return self._filled(held_by[max(within, default=min(held_by))], args[1], target.total)

    def _filled(self, plan: Plan, image: Sequence[float], limit: float) -> Plan:
        """Let the patch grow by one step, where nnU-Net's own steps leave much memory unused.

        Args:
            plan: With a batch of the size that fits.
            image: Median shape of the images, in voxels.
            limit: Bytes that may be held.
        """
        share = self._held(plan).at(plan["batch_size"]) / limit
        if share >= FILLED or plan["batch_size"] > self.UNet_min_batch_size:
            return plan
        patch = np.array(plan["patch_size"])
        step = np.prod(plan["architecture"]["arch_kwargs"]["strides"], axis=0)
        small = (1 + step / patch) * share < 1
        free = np.flatnonzero(small & (patch + step <= np.array(image))).tolist()
        if not free:
            return plan
        axis = min(free, key=lambda axis: patch[axis] / image[axis])
        patch[axis] += step[axis]
        grown = {**plan, "patch_size": tuple(map(int, patch))}
        return grown if self._held(grown).at(plan["batch_size"]) <= limit else plan

    def _plan(self, factor: float, args: tuple[Any, ...]) -> Plan:
        self._factor = factor
        *given, _estimates = args  # which depend on the factor
        plan: Plan = super().get_plans_for_configuration(*given, {})
        return plan

    def _target(self, stock: Plan) -> Target:
        dim = len(stock["patch_size"])
        held = self._simulate(nnUNetTrainer, stock)
        per_feature = held.per_image / self._features[_size(stock)]
        features = getattr(self, f"UNet_reference_val_{dim}d")
        features *= getattr(self, f"UNet_reference_val_corresp_bs_{dim}d")
        features *= self.UNet_vram_target_GB / self.UNet_reference_val_corresp_GB
        return Target(held.static + per_feature * features, held.static, per_feature)

    def _held(self, plan: Plan) -> Held:
        if _size(plan) not in self._simulated:
            trainer = lookup.load("trainers", self.trainer_name)
            self._simulated[_size(plan)] = self._simulate(trainer, plan)
        return self._simulated[_size(plan)]

    def _build(self, plan: Plan) -> None:
        """Let the method refuse a network that it cannot train."""
        training = self._training(lookup.load("trainers", self.trainer_name), plan)
        manager = PlansManager(dict(training.plans))
        channels, labels = self.dataset_json["channel_names"], self.dataset_json["labels"]
        with torch.device("meta"):
            training.trainer.build_network_architecture(
                manager, manager.get_configuration("planned"), len(channels), len(labels)
            )

    def _simulate(self, trainer: Any, plan: Plan) -> Held:
        """Simulate the phase that holds most, which is the same for all patches."""
        training, dim = self._training(trainer, plan), len(plan["patch_size"])
        peaks = simulate(training, steps_only=True, only=self._phases.get((trainer, dim)))
        phase = max(peaks, key=lambda phase: peaks[phase].total)
        self._phases[trainer, dim] = phase
        constant = static(peaks[phase])
        return Held(constant, (peaks[phase].total - constant) / plan["batch_size"])

    def _training(self, trainer: Any, plan: Plan) -> Training:
        configuration = copy.deepcopy(plan) | {"batch_dice": False}
        recursive_fix_for_json_export(configuration)
        plans = {
            "dataset_name": self.dataset_name,
            "plans_name": self.plans_identifier,
            "configurations": {"planned": configuration},
            "label_manager": "LabelManager",
        }
        return Training(trainer, plans, "planned", self.dataset_json)


def _size(plan: Plan) -> str:
    """What decides how much memory an image takes."""
    arguments = plan["architecture"]["arch_kwargs"]
    return f"{plan['patch_size']} {arguments['strides']} {arguments['kernel_sizes']}"


def _planner(entry: Planner, trainer_name: str) -> type[MethodPlanner]:
    body = {
        "__module__": __name__,
        "__doc__": f"Plans for {entry.plans}: {entry.purpose}.",
        "default_plans_name": entry.plans,
        "trainer_name": trainer_name,
    }
    bases = (MethodPlanner, nnUNetPlannerResEncM) if entry.residual else (MethodPlanner,)
    return type(entry.name, bases, body)


# from nnU-Net's plain-conv planner, and once more from that of its residual encoders (ResEnc M)
globals().update({e.name: _planner(e, t.name) for t in TRAINERS.values() for e in t.planners})
