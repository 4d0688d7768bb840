"""Preprocessed data sets and networks so small that nnU-Net trains on them within a second."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import nnunet_ext.trainers
from nnunet_ext.domains import preprocessing

DATASET = "Dataset777_Tiny"
PLANS = "TinyPlans"
BASE = "tiny_base"
CONFIGURATION = "tiny"
"""The configuration to train; it inherits from :data:`BASE` and holds our settings."""
FIRST_STAGE = "tiny_lowres"
CASES = ("case_0", "case_1", "case_2", "case_3")
TRAIN, VALIDATION = CASES[:3], CASES[3:]
UNLABELLED = ("un_0", "un_1")
"""Cases of another modality, preprocessed; their raw images have been put away."""
TWO_SITES = ("site_a", "site_a", "site_b", "site_b")
"""Domains of the cases; the held-out case has one that is trained on as well."""
EDGE = 16
FEATURES = (4, 8, 8, 8)
IGNORE = 3
CPU = torch.device("cpu")

QUICK = {
    "num_epochs": 2,
    "num_iterations_per_epoch": 2,
    "num_val_iterations_per_epoch": 1,
    "seed": 0,
}
"""Training settings that every tiny training has unless a test says otherwise."""


@dataclass(frozen=True)
class Task:
    """A kind of data set and the kind of network planned for it."""

    dim: Literal[2, 3] = 3
    residual: bool = False
    regions: bool = False
    ignore: bool = False
    channels: int = 1
    anisotropic: bool = False
    norm: Literal["batch", "instance"] = "instance"
    deep_supervision: bool = True
    cascade: bool = False
    domains: tuple[str | None, ...] = ()

    def __str__(self) -> str:
        switches = (
            *("residual", "regions", "ignore", "anisotropic", "cascade", "domains"),
            "deep_supervision",
        )
        words = [f"{self.dim}d", self.norm, *(name for name in switches if getattr(self, name))]
        return "-".join([*words, "two_channels"] if self.channels == 2 else words)

    @property
    def heads(self) -> int:
        """Output channels: background and two classes, or two overlapping regions."""
        return 2 if self.regions else 3

    @property
    def input_channels(self) -> int:
        """A cascade adds the classes that its first network found."""
        return self.channels + (2 if self.cascade else 0)

    @property
    def patch_size(self) -> list[int]:
        first = EDGE // 2 if self.anisotropic else EDGE
        return [first, *[EDGE] * (self.dim - 1)]

    @property
    def labels(self) -> dict[str, Any]:
        labels: dict[str, Any] = (
            {"background": 0, "whole": [1, 2], "core": 2}
            if self.regions
            else {"background": 0, "organ": 1, "lesion": 2}
        )
        return labels | ({"ignore": IGNORE} if self.ignore else {})

    @property
    def dataset_json(self) -> dict[str, Any]:
        more: dict[str, Any] = {"regions_class_order": [1, 2]} if self.regions else {}
        if self.domains:
            pairs = zip(CASES, self.domains, strict=False)
            more["domains"] = {case: domain for case, domain in pairs if domain is not None}
        return {
            "channel_names": {str(i): "noNorm" for i in range(self.channels)},
            "labels": self.labels,
            "numTraining": len(CASES),
            "file_ending": ".nii.gz",
            **more,
        }

    @property
    def architecture(self) -> dict[str, Any]:
        """The network as plans describe it."""
        stages = len(FEATURES)
        halved = [2] * self.dim
        second = [1, *[2] * (self.dim - 1)] if self.anisotropic else halved
        flat = [1, *[3] * (self.dim - 1)] if self.anisotropic else [3] * self.dim
        per_stage = "n_blocks_per_stage" if self.residual else "n_conv_per_stage"
        norm = {"batch": "BatchNorm", "instance": "InstanceNorm"}[self.norm]
        return {
            "network_class_name": "dynamic_network_architectures.architectures.unet."
            + ("ResidualEncoderUNet" if self.residual else "PlainConvUNet"),
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": list(FEATURES),
                "conv_op": f"torch.nn.modules.conv.Conv{self.dim}d",
                "kernel_sizes": [flat, *[[3] * self.dim] * (stages - 1)],
                "strides": [[1] * self.dim, second, *[halved] * (stages - 2)],
                per_stage: [1] * stages,
                "n_conv_per_stage_decoder": [1] * (stages - 1),
                "conv_bias": True,
                "norm_op": f"torch.nn.modules.{norm.lower()}.{norm}{self.dim}d",
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        }

    def unet(self) -> nn.Module:
        """Build the stock network with nnU-Net's initialisation."""
        plan = self.architecture
        network: nn.Module = get_network_from_plans(
            plan["network_class_name"],
            plan["arch_kwargs"],
            plan["_kw_requires_import"],
            self.input_channels,
            self.heads,
            deep_supervision=self.deep_supervision,
        )
        return network

    def images(self, batch_size: int = 2, seed: int = 0) -> torch.Tensor:
        """Draw a batch of images of noise."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch_size, self.input_channels, *self.patch_size, generator=generator)


@dataclass(frozen=True)
class World:
    """A preprocessed data set in nnU-Net's folders, ready to be trained on."""

    root: Path
    task: Task

    def plans(self, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Plans whose configuration "tiny" holds these settings beside the quick ones."""
        task, dim = self.task, self.task.dim
        resampling = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
        base = {
            "data_identifier": f"{PLANS}_data",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": task.patch_size,
            "median_image_size_in_voxels": [EDGE] * dim,
            "spacing": [1.0] * dim,
            "normalization_schemes": ["NoNormalization"] * task.channels,
            "use_mask_for_norm": [False] * task.channels,
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_seg": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": resampling,
            "resampling_fn_seg_kwargs": resampling | {"is_seg": True},
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            "resampling_fn_probabilities_kwargs": resampling,
            "architecture": task.architecture,
            "batch_dice": dim == 2,
        }
        chosen = {"inherits_from": BASE, "nnunet_ext": QUICK | dict(settings or {})}
        if task.cascade:
            chosen["previous_stage"] = FIRST_STAGE
        plans = {
            "dataset_name": DATASET,
            "plans_name": PLANS,
            "original_median_spacing_after_transp": [1.0] * 3,
            "original_median_shape_after_transp": [EDGE] * 3,
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {BASE: base, FIRST_STAGE: base, CONFIGURATION: chosen},
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {
                str(i): {} for i in range(task.channels)
            },
        }
        return copy.deepcopy(plans)

    def trainer(
        self,
        trainer: str | type[nnUNetTrainer] = "ExtensionTrainer",
        settings: Mapping[str, Any] | None = None,
        *,
        continue_training: bool = False,
    ) -> Any:
        """Construct a trainer, by its name here or by class, the way nnUNetv2_train does."""
        if isinstance(trainer, str):
            trainer = getattr(nnunet_ext.trainers, trainer)
        assert isinstance(trainer, type)
        plans = self.plans(settings) | {"continue_training": continue_training}
        made = trainer(plans, CONFIGURATION, 0, copy.deepcopy(self.task.dataset_json), CPU)
        made.enable_deep_supervision &= self.task.deep_supervision
        if self.task.cascade:
            self._write_first_stage(Path(made.folder_with_segs_from_previous_stage))
        return made

    def _write_first_stage(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(CASES):
            seg = np.clip(_draw(self.task, number)[1], 0, 2)
            nnUNetDatasetBlosc2.save_seg(seg, str(folder / case), seg.shape, seg.shape)

    def write_raw(self, test: bool = False) -> Path:
        """Write the data set in nnU-Net's raw format.

        Args:
            test: Whether there are two labelled test images as well.
        """
        raw = self.root / "raw" / DATASET
        parts = {"Tr": enumerate(CASES)}
        if test:
            parts["Ts"] = enumerate(("test_0", "test_1"), start=len(CASES))
        for part, cases in parts.items():
            for kind in ("images", "labels"):
                (raw / f"{kind}{part}").mkdir(parents=True)
            for number, case in cases:
                image, seg = _draw(self.task, number)
                for channel, voxels in enumerate(image):
                    path = raw / f"images{part}" / f"{case}_{channel:04d}.nii.gz"
                    sitk.WriteImage(sitk.GetImageFromArray(voxels), path)
                labels = sitk.GetImageFromArray(seg.astype(np.uint8))
                sitk.WriteImage(labels, raw / f"labels{part}" / f"{case}.nii.gz")
        (raw / "dataset.json").write_text(json.dumps(self.task.dataset_json))
        return raw

    @property
    def results(self) -> Path:
        return self.root / "results" / DATASET


class OnCpu(DistributedDataParallel):
    """DDP as nnU-Net asks for it, without the device that CPU tests lack."""

    def __init__(self, module: nn.Module, device_ids: list[int], **kwargs: Any) -> None:
        super().__init__(module, **kwargs)


def ready(trainer: Any) -> Any:
    """Bring a trainer to the start of its first epoch."""
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.on_train_epoch_start()
    return trainer


def batch_for(trainer: Any, task: Task) -> dict[str, Any]:
    """Draw noise with labels of the shapes that nnU-Net's loader delivers."""
    generator = torch.Generator().manual_seed(0)
    channels = task.heads + task.ignore if task.regions else 1
    values = 2 if task.regions else task.heads + task.ignore
    scales = trainer._get_deep_supervision_scales() or [[1] * task.dim]
    targets = []
    for scale in scales:
        size = [round(n * s) for n, s in zip(task.patch_size, scale, strict=True)]
        targets.append(torch.randint(values, (2, channels, *size), generator=generator))
    target = targets if trainer.enable_deep_supervision else targets[0]
    return {"data": task.images(), "target": target, "keys": ["case_0", "case_1"]}


def make_world(root: Path, task: Task, monkeypatch: pytest.MonkeyPatch) -> World:
    """Write the data set below ``root`` and point nnU-Net's environment there."""
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(root / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_compile", "f")
    world = World(root, task)
    folder = root / "preprocessed" / DATASET
    data = folder / f"{PLANS}_data"
    truth = folder / "gt_segmentations"
    for each in (data, truth):
        each.mkdir(parents=True)
    for number, case in enumerate(CASES):
        image, seg = _draw(task, number)
        _save_case(data / case, image, seg, _properties(task, seg))
        sitk.WriteImage(sitk.GetImageFromArray(seg.astype(np.uint8)), truth / f"{case}.nii.gz")
    for name, content in {
        "dataset.json": task.dataset_json,
        f"{PLANS}.json": world.plans(),
        "dataset_fingerprint.json": {"spacings": [[1.0] * 3] * len(CASES)},
        "splits_final.json": [{"train": list(TRAIN), "val": list(VALIDATION)}],
    }.items():
        (folder / name).write_text(json.dumps(content))
    _write_unlabelled(world, data.with_name(data.name + preprocessing.SUFFIX))
    return world


def _write_unlabelled(world: World, folder: Path) -> None:
    (folder / preprocessing.CASES).mkdir(parents=True)
    for number, case in enumerate(UNLABELLED, start=len(CASES)):
        image, seg = _draw(world.task, number)
        properties = _properties(world.task, np.zeros_like(seg))
        _save_case(folder / preprocessing.CASES / case, 2 - image, np.zeros_like(seg), properties)
    plans = PlansManager(world.plans())
    record = preprocessing.decisive_plans(plans, plans.get_configuration(CONFIGURATION))
    (folder / preprocessing.RECORD).write_text(json.dumps(record | {"images": {}}))


def _save_case(
    path: Path, image: NDArray[np.float32], seg: NDArray[np.int16], properties: dict[str, Any]
) -> None:
    nnUNetDatasetBlosc2.save_case(
        image,
        seg[None],
        properties,
        str(path),
        chunks=image.shape,
        blocks=image.shape,
        chunks_seg=(1, *seg.shape),
        blocks_seg=(1, *seg.shape),
    )


@cache
def _draw(task: Task, number: int) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """A bright ball with a brighter core, and where asked for an unannotated slab."""
    rng = np.random.default_rng(number)
    grid = np.stack(np.meshgrid(*[np.arange(EDGE)] * 3, indexing="ij"))
    distance = np.linalg.norm(grid - rng.uniform(6, 9, (3, 1, 1, 1)), axis=0)
    seg = (distance < 6).astype(np.int16) + (distance < 3)
    image = seg + rng.normal(0, 0.3, (task.channels, *seg.shape))
    if task.ignore:
        seg[:, :, -3:] = IGNORE
    return image.astype(np.float32), seg


def _properties(task: Task, seg: NDArray[np.int16]) -> dict[str, Any]:
    wanted: list[int | tuple[int, ...]] = [(1, 2), 2] if task.regions else [1, 2]
    if task.ignore:
        wanted.append((-1, 0, 1, 2))
    places = {each: np.argwhere(np.isin(seg, each)) for each in wanted}
    return {
        "sitk_stuff": {
            "spacing": (1.0,) * 3,
            "origin": (0.0,) * 3,
            "direction": tuple(np.eye(3).ravel().tolist()),
        },
        "spacing": [1.0] * 3,
        "shape_before_cropping": seg.shape,
        "bbox_used_for_cropping": [[0, edge] for edge in seg.shape],
        "shape_after_cropping_and_before_resampling": seg.shape,
        # nnU-Net's locations are indices into (channel, *spatial)
        "class_locations": {k: np.insert(v, 0, 0, axis=1) for k, v in places.items()},
    }


def running_statistics(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Means and variances that batch normalisation evaluates with."""
    return {name: b for name, b in network.named_buffers() if "running_" in name}


def recalibrated(network: torch.nn.Module, x: torch.Tensor, **arguments: Any) -> Any:
    """What a network evaluates to whose running statistics are those of this batch alone."""
    alone = copy.deepcopy(network)
    for module in alone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    alone(x, **arguments)
    return alone.eval()(x, **arguments)


def same(first: Any, second: Any) -> bool:
    """Whether nested containers of tensors, arrays and values are equal bit by bit."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(np.array_equal(first, second, equal_nan=isinstance(first, float | np.floating)))
