"""Training of the translator, which can be stopped at any time and goes on where it was."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from nnunet_ext._common.console import duration
from nnunet_ext._common.errors import CheckpointError, NonFiniteLossError
from nnunet_ext._common.files import replacing
from nnunet_ext.losses import critic_loss, translation_losses
from nnunet_ext.networks import DomainDiscriminator, Translator
from nnunet_ext.networks.mind_the_gap.translator import SOURCE, TARGET, Cycle, opposite
from nnunet_ext.settings.mind_the_gap import TranslatorSettings
from nnunet_ext.translation.crops import CropBatches, crop_shape
from nnunet_ext.translation.intensities import IntensityRange, survey
from nnunet_ext.translation.pool import HistoryPool
from nnunet_ext.translation.sheet import draw_sheet

CHECKPOINT = "checkpoint.pth"
REPORT_EVERY = 500
"""Iterations between two checkpoints, each with a line in the log and a sheet of pictures."""

TRIAL = 400
"""Steps of a trial, unless that is more than its share of all."""
TRIAL_SHARE = 1 / 8
TIMED = 2
"""Steps that tell how long all will take."""
LEAST_SEEN = 0.75
"""Share of the longest edge that a crop must have, so that whole images look alike to it."""

POOL = 50
"""Past translations of each domain that the discriminator sees again."""

_LR = 2e-4
_BETAS = (0.5, 0.999)
_WEIGHT_DECAY = 1e-4
_SEED_STRIDE = 1_000_003  # prime, and more than there are iterations
_START_STRIDE = 104_729  # prime, so that the starts of one seed are not those of the next
_SHOWN = 4  # rows of a sheet


class TranslatorTraining:
    """The translator of one configuration, from its first step or from its checkpoint on.

    Paper: arXiv 2205.11888, Step A; see :mod:`nnunet_ext.networks.mind_the_gap.translator`.
    GPUs that can do so compute convolutions in bfloat16, which needs no scaling of losses; these,
    and all else, are in float32. Both domains go through the networks in one batch, which no
    normalisation over the batch would notice.

    Several starts are our addition. Whether bright becomes bright or dark is decided by the initial
    weights within the first hundred steps; reconstruction and cycle do not mind, and weigh so much
    that the adversarial loss rarely turns it round later. It does tell, though, which of several
    trials was lucky. Most starts keep bright bright, so in every other one the source is inverted.

    Args:
        datasets: nnU-Net's data sets of source and target.
        settings: Of Step A.
        folder: For checkpoint and pictures; must exist.
        device: Where to compute.
        log: Gets a line now and then.
        workers: Processes that draw crops; 0 draws them in this one.

    Raises:
        CheckpointError: If there is a checkpoint, but it cannot be read.
        UserError: If the images of a domain are constant.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        settings: TranslatorSettings,
        folder: Path,
        device: torch.device,
        log: Callable[[str], object] = print,
        workers: int = 0,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.device = device
        self.log = log
        self.workers = workers
        self.iteration = 0
        state = self._read()
        if state is None:
            surveys = [
                survey(dataset, name)
                for dataset, name in zip(datasets, ("labelled", "unlabelled"), strict=True)
            ]
            self.ranges = [each.intensities for each in surveys]
            largest = np.max([each.largest for each in surveys], axis=0).tolist()
            dim = settings.translator_dim
            self.shape = crop_shape(largest, settings.translator_crop, dim)
            seen = np.divide(self.shape, largest[3 - dim :])
            if seen.min() < LEAST_SEEN:
                log(
                    f"WARNING: the translator is trained on crops of {self.shape}, but translates "
                    f"images of up to {tuple(largest[3 - dim :])}. The size changes the "
                    "statistics of its normalisation: raise mind_the_gap.translator_crop if memory "
                    "allows."
                )
        else:
            self.ranges = _ranges(state)
            self.shape = tuple(state["shape"])
        self.batches = CropBatches(
            datasets,
            self.ranges,
            self.shape,
            settings.translator_batch,
            settings.translator_seed,
        )
        self._build()
        if state is not None:
            self._restore(state)
            if not self.is_finished:
                log(f"Step A continues at iteration {self.iteration}.")

    def _build(self, start: int = 0) -> None:
        """Make networks and optimisers, with weights of this start."""
        settings = self.settings
        channels = len(self.ranges[SOURCE].low)
        self.pools = [HistoryPool(POOL) for _ in (SOURCE, TARGET)]
        with torch.random.fork_rng(devices=[]):  # built on the CPU
            torch.manual_seed(settings.translator_seed + start * _START_STRIDE)
            self.translator = Translator(
                channels,
                settings.translator_dim,
                settings.translator_filters,
                settings.translator_blocks,
            ).to(self.device)
            self.discriminator = DomainDiscriminator(
                channels, settings.translator_dim, settings.translator_filters
            ).to(self.device)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), _LR, betas=_BETAS, weight_decay=_WEIGHT_DECAY)
            for network in (self.translator, self.discriminator)
        ]

    @property
    def is_finished(self) -> bool:
        """Whether all iterations have been made."""
        return self.iteration >= self.settings.translator_iterations

    def run(self) -> None:
        """Train to the end.

        Raises:
            NonFiniteLossError: If a part of the loss becomes NaN or infinite. The last checkpoint
                stays as it was.
        """
        if self.iteration == 0:
            self._tell_duration()
            self._choose_start()
        sums: dict[str, Tensor] = {}  # on the device, so that nothing waits for them
        started, since, until = (
            time.perf_counter(),
            self.iteration,
            self.settings.translator_iterations,
        )
        for parts in self._steps(self._loader(range(since, until)), until, "Step A"):
            for name, part in parts.items():
                sums[name] = part + sums.get(name, 0)
            if self.iteration % REPORT_EVERY == 0 or self.is_finished:
                steps = self.iteration - since
                figures = {name: float(value) / steps for name, value in sums.items()}
                seen = steps * 2 * self.settings.translator_batch
                self._report(figures, seen / (time.perf_counter() - started))
                self._save()
                sums.clear()
                started, since = time.perf_counter(), self.iteration

    def _choose_start(self) -> None:
        """Try several initial weights, and go on from where the best of them has come."""
        settings, trial = self.settings, self._trial
        if trial == 0:
            return
        lowest, best = math.inf, self._state()
        source = self.ranges[SOURCE]
        ranges = [
            source.inverted if start % 2 else source for start in range(settings.translator_starts)
        ]
        # one loader for all trials: workers that are not forked take seconds to start
        batches = iter(self._loader([(step, each) for each in ranges for step in range(trial)]))
        for start, each in enumerate(ranges):
            self.iteration = 0
            self._build(start)
            self.ranges[SOURCE] = each
            which = f"Step A, start {start + 1} of {settings.translator_starts}"
            which += ", labelled images inverted" if start % 2 else ""
            steps = self._steps(islice(batches, trial), trial, which)
            losses = [parts["adversarial"] for parts in steps]
            loss = float(torch.stack(losses[trial // 2 :]).mean())
            self.log(f"{which}: adversarial {loss:.4f} in iterations {trial // 2} to {trial}")
            if loss < lowest:
                lowest, best = loss, copy.deepcopy(self._state())
        self._restore(best)
        self._save()

    def _loader(self, order: Any) -> DataLoader[Tensor]:
        return DataLoader(
            self.batches,
            batch_size=None,
            sampler=order,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )

    def _steps(
        self, batches: Iterable[Tensor], until: int, description: str
    ) -> Iterator[dict[str, Tensor]]:
        """Take a step with each batch, up to an iteration; gives the parts of each one's loss."""
        with tqdm(
            total=until, initial=self.iteration, desc=description, leave=False, disable=None
        ) as bar:
            for images in batches:
                parts = self.step(images.to(self.device, non_blocking=True))
                self.iteration += 1
                bar.update()
                yield parts

    def _tell_duration(self) -> None:
        """Say how long all will take, after a few steps that count for nothing."""
        settings = self.settings
        images = self.batches[0].to(self.device)
        self.step(images)  # the first one prepares
        started = time.perf_counter()
        for _ in range(TIMED):
            float(next(iter(self.step(images).values())))  # waits for the device
        seconds = (time.perf_counter() - started) / TIMED
        steps = settings.translator_iterations + (settings.translator_starts - 1) * self._trial
        self.log(
            f"Step A takes {seconds:.2g} s for each iteration, about {duration(steps * seconds)} "
            "for all. A smaller network is faster: mind_the_gap.translator_filters=16, "
            "mind_the_gap.translator_blocks=2."
        )
        self._build()

    @property
    def _trial(self) -> int:
        """Steps of each start that is tried; none if there is one start."""
        settings = self.settings
        if settings.translator_starts == 1:
            return 0
        return min(TRIAL, int(TRIAL_SHARE * settings.translator_iterations))

    def _mixed_precision(self) -> AbstractContextManager[Any]:
        if self.device.type == "cuda" and torch.cuda.is_bf16_supported():
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def step(self, images: Tensor) -> dict[str, Tensor]:
        """Improve translator and discriminator once.

        Args:
            images: (2B, C, *S) in [-1, 1], those of the source first.

        Returns:
            Parts of the loss, without gradient.
        """
        self._set_learning_rate()
        half = len(images) // 2
        own = torch.tensor([SOURCE] * half + [TARGET] * half, device=self.device)
        other = opposite(own)

        with self._mixed_precision():
            cycle = self.translator.cycle(images, own)
            scores = self.discriminator(cycle.translation, other)
        cycle = Cycle(*(each.float() for each in cycle))
        parts = translation_losses(
            images,
            cycle.reconstruction,
            cycle.cycled,
            cycle.content,
            cycle.translated_content,
            scores.float(),
        )
        learning, judging = self.optimizers
        learning.zero_grad(set_to_none=True)
        total = torch.stack(list(parts.values())).sum()
        total.backward(inputs=list(self.translator.parameters()))
        learning.step()

        # translations of the source come first, and have a pool of their own
        generator = torch.Generator().manual_seed(
            self.settings.translator_seed * _SEED_STRIDE + self.iteration
        )
        fakes = torch.cat(
            [
                pool.exchange(translations, generator)
                for pool, translations in zip(
                    self.pools, cycle.translation.detach().split(half), strict=True
                )
            ]
        )
        with self._mixed_precision():
            low, high = (
                self.discriminator(each, of) for each, of in ((fakes, other), (images, own))
            )
        judgement = critic_loss(low=low.float(), high=high.float())
        judging.zero_grad(set_to_none=True)
        judgement.backward()
        judging.step()
        return {name: p.detach() for name, p in (parts | {"discriminator": judgement}).items()}

    def _set_learning_rate(self) -> None:
        """Keep the rate for half of the training, then let it fall linearly to zero."""
        left = 1 - self.iteration / self.settings.translator_iterations
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _LR * min(1.0, 2 * left)

    def _report(self, figures: dict[str, float], rate: float) -> None:
        progress = f"Step A, iteration {self.iteration} of {self.settings.translator_iterations}"
        broken = [name for name, value in figures.items() if not np.isfinite(value)]
        if broken:
            raise NonFiniteLossError(
                f'{progress}: the loss part "{broken[0]}" became {figures[broken[0]]}. The last '
                "checkpoint is untouched. Check the images for NaN or infinite voxels."
            )
        described = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        self.log(f"{progress}: {described}; {rate:.1f} images per second")
        self.draw(self.folder / f"translations_{self.iteration:06d}.png")

    @torch.no_grad()
    def draw(self, file: Path) -> None:
        """Draw translations of the same few crops every time."""
        # a batch that training never sees
        images = self.batches[self.settings.translator_iterations].to(self.device)
        source, target = (half[:_SHOWN] for half in images.chunk(2))
        cycle = self.translator.cycle(
            source, torch.full((len(source),), SOURCE, device=self.device)
        )
        sign = -1 if self.ranges[SOURCE].low > self.ranges[SOURCE].high else 1
        columns = {
            "labelled": sign * source,
            "translated": cycle.translation,
            "and back": sign * cycle.cycled,
            "unlabelled": target,
        }
        draw_sheet(columns, file)

    def _save(self) -> None:
        with replacing(self.folder / CHECKPOINT) as partial:
            torch.save(self._state(), partial)

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "iteration": self.iteration,
            "ranges": [list(asdict(each).values()) for each in self.ranges],
            "shape": self.shape,
            "translator": self.translator.state_dict(),
        }
        if not self.is_finished:
            state |= {
                "discriminator": self.discriminator.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "pools": [pool.images for pool in self.pools],
            }
        return state

    def _read(self) -> dict[str, Any] | None:
        file = self.folder / CHECKPOINT
        if not file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(file, map_location=self.device, weights_only=True)
        except Exception as error:  # damaged bytes can raise anything
            raise CheckpointError(
                f"Cannot read {file}. It was probably damaged while being copied; delete it to "
                "train the translator again."
            ) from error
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        self.iteration = state["iteration"]
        self.ranges[:] = _ranges(state)  # in place, because the crops are drawn from them
        self.translator.load_state_dict(state["translator"])
        if not self.is_finished:
            self.discriminator.load_state_dict(state["discriminator"])
            for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            for pool, images in zip(self.pools, state["pools"], strict=True):
                pool.images = images


def _ranges(state: dict[str, Any]) -> list[IntensityRange]:
    return [IntensityRange(*map(tuple, pair)) for pair in state["ranges"]]
