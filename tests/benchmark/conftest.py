"""A benchmark that looks prepared, so that no command of nnU-Net's is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from nnunet_ext.benchmark import spec
from nnunet_ext.benchmark.arms import Training
from nnunet_ext.benchmark.layout import Layout
from nnunet_ext.benchmark.prepare import Prepared

ARMS: dict[str, Any] = {
    "stock": {"trainer": "nnUNetTrainer"},
    "CateNorm": {"trainer": "CateNormTrainer"},
    "first pass": {
        "trainer": "CateNormTrainer",
        "weights_of": "CateNorm",
        "settings": {"catenorm": {"predict": "first"}},
    },
}


@pytest.fixture
def make_layout(tmp_path: Path) -> Callable[..., Layout]:
    """Write a prepared benchmark of four cases; arguments change ``benchmark.json``."""

    def make(
        trainings: dict[str, Training] | None = None, test: bool = False, **changes: Any
    ) -> Layout:
        content = {
            "dataset": "Dataset777_Tiny",
            "plans": "TinyPlans",
            "configurations": ["tiny_base"],
            "folds": [0],
            "arms": ARMS,
            **changes,
        }
        spec.claim(tmp_path / "benchmark", spec.from_content(content, "test"))
        layout = Layout(tmp_path / "benchmark")
        layout.dataset.mkdir(parents=True, exist_ok=True)
        images = tmp_path / "imagesTs"
        images.mkdir(exist_ok=True)
        (images / "case_9_0000.nii.gz").touch()
        prepared = Prepared(
            trainings={
                arm: Training(each.trainer, epochs=2) for arm, each in layout.benchmark.arms.items()
            }
            | (trainings or {}),
            folds={fold: ["case_3"] for fold in layout.benchmark.folds},
            images={"case_3": ["case_3_0000.nii.gz"]},
            file_ending=".nii.gz",
            test_images=str(images) if test else None,
            test_labels=None,
            noisy=[],
        )
        layout.prepared.write_text(json.dumps(asdict(prepared)))
        return layout

    return make
