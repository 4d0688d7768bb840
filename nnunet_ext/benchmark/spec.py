"""What a benchmark is: which arms, on which data, how often. Kept in ``benchmark.json``."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from nnunet_ext._common.errors import SettingsError, UserError
from nnunet_ext._common.files import read_json, write_json
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.benchmark.degradation import Degradation
from nnunet_ext.benchmark.label_noise import LabelNoise
from nnunet_ext.settings import PLANS_KEY, STRICT, read_training_settings

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

FILE_NAME = "benchmark.json"

MAY_GROW = (
    *("description", "datasets", "arms", "configurations", "folds", "seeds", "baseline", "margin"),
    "degradations",
)
"""Fields that may change without making finished trainings useless."""

_DATASET = re.compile(r"Dataset\d{3}_[\w.-]+")
AtLeastOne = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, config=STRICT)
class Arm:
    """One of the things that are compared: a trainer under certain settings."""

    trainer: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # beside the benchmark's
    plans: str | None = None
    weights_of: str | None = None  # the arm whose weights are evaluated under these settings
    begins_with: str | None = None  # the arm from whose trained weights its training begins
    description: str = ""


@dataclass(frozen=True, config=STRICT)
class Split:
    """A fold, by regular expressions that must match whole case names; trained is on all others."""

    validation: str
    training: str | None = None


@dataclass(frozen=True, config=STRICT)
class PlanChanges:
    """What the benchmark changes in every planned configuration, to fit its means."""

    patch_size: Annotated[tuple[int, ...] | None, Field(min_length=2, max_length=3)] = None
    batch_size: AtLeastOne | None = None


@dataclass(frozen=True, config=STRICT)
class Benchmark:
    """Everything that decides a benchmark's result, but not where and how fast it runs.

    The table in docs/benchmark.md says what each key means.
    """

    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    dataset: str = ""
    datasets: tuple[str, ...] = ()  # in place of one; one_by_one() makes benchmarks of them
    plans: str = "nnUNetPlans"
    configurations: Annotated[tuple[str, ...], Field(min_length=1)] = ("3d_fullres",)
    folds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    seeds: AtLeastOne = 1  # trainings per arm, configuration and fold
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    plan_changes: PlanChanges = PlanChanges()
    splits: tuple[Split, ...] | None = None
    subject: str | None = None  # regular expression whose group names the subject of a case
    label_noise: LabelNoise | None = None
    degradations: dict[str, Degradation] = dataclasses.field(default_factory=dict)
    baseline: str | None = None
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.005  # differences of Dice that do not matter
    description: str = ""

    def __post_init__(self) -> None:
        read_training_settings({PLANS_KEY: self.settings}, '"settings"')
        if self.splits is not None:
            refuse_missing_folds(self.folds, len(self.splits), '"splits"')
        for problem in self._problems():
            raise ValueError(problem)

    def _problems(self) -> Iterator[str]:
        if bool(self.dataset) == bool(self.datasets):
            yield 'either "dataset" or "datasets" must be given'
        for name in self.datasets or (self.dataset,):
            if not _DATASET.fullmatch(name):
                yield f'dataset "{name}" must be a full name, such as Dataset004_Hippocampus'
        if len(set(self.datasets)) < len(self.datasets):
            yield '"datasets" names one twice'
        # in lower case, because some file systems do not tell the cases apart
        slugs = {name: slug(name).lower() for name in self.arms}
        shared = [name for name in slugs if [*slugs.values()].count(slugs[name]) > 1]
        if shared:
            yield f"arms {' and '.join(shared)} would share a folder; rename them"
        if self.baseline is not None and self.baseline not in self.arms:
            yield f'baseline "{self.baseline}" is none of the arms {", ".join(self.arms)}'
        holders = {'"settings"': self.settings}
        for name, arm in self.arms.items():
            holders[f'arm "{name}"'] = arm.settings
            other = self.arms.get(arm.weights_of) if arm.weights_of else None
            if not slug(name):
                yield f'arm "{name}" needs a name with letters or digits'
            if arm.weights_of and (other is None or other.weights_of):
                yield f'arm "{name}": weights_of must name an arm that is trained'
            elif other and (other.trainer, other.plans) != (arm.trainer, arm.plans):
                yield f'arm "{name}" must have trainer and plans of "{arm.weights_of}"'
            first = self.arms.get(arm.begins_with) if arm.begins_with else None
            if arm.begins_with and (first is None or first.begins_with or first.weights_of):
                yield f'arm "{name}": begins_with must name an arm that is trained from scratch'
            elif first and (arm.weights_of or first.plans != arm.plans):
                yield f'arm "{name}" must be trained, with the plans of "{arm.begins_with}"'
        for holder, settings in holders.items():
            if "seed" in settings:
                yield f'{holder} must not hold a seed; "seeds" says how many there are'
        for name in self.degradations:
            if slug(name) != name:
                yield f'name of degradation "{name}": only letters, digits, "-"'
        patterns = [pattern for split in self.splits or () for pattern in astuple(split) if pattern]
        for pattern in [*patterns, *([self.subject] if self.subject else [])]:
            try:
                if re.compile(pattern).groups != 1 and pattern == self.subject:
                    yield f'"subject" needs exactly one group: {pattern}'
            except re.error as error:
                yield f"{pattern!r} is not a regular expression: {error}"

    @property
    def baseline_arm(self) -> str:
        """The arm that the others are compared with."""
        return self.baseline or next(iter(self.arms))

    def plans_of(self, arm: str) -> str:
        """Name of the plans that an arm trains with."""
        return self.arms[arm].plans or self.plans

    def settings_of(self, arm: str) -> dict[str, Any]:
        """Settings of an arm without the seed, methods merged key by key."""
        return merged(self.settings, self.arms[arm].settings)

    def subject_of(self, case: str) -> str:
        """The subject that a case belongs to; the case itself if nothing is said or matches."""
        match = re.search(self.subject, case) if self.subject else None
        return match[1] if match else case


def one_by_one(benchmark: Benchmark) -> list[Benchmark]:
    """The benchmarks of single data sets that one of several consists of."""
    names = benchmark.datasets or (benchmark.dataset,)
    return [dataclasses.replace(benchmark, dataset=name, datasets=()) for name in names]


def refuse_missing_folds(folds: Sequence[int], number: int, where: str) -> None:
    """Refuse folds that there are not."""
    if max(folds) >= number:
        there = " ".join(map(str, range(number)))
        raise SettingsError(
            f"There is no fold {max(folds)}: {where} has the folds {there}. Say which to train, by "
            f'--folds {there} or "folds" in the file; they are 0 to 4 unless given.'
        )


_OWNERS: dict[str, Any] = {
    "arms": Arm,
    "splits": Split,
    "plan_changes": PlanChanges,
    "label_noise": LabelNoise,
    "degradations": Degradation,
}
"""Field of a benchmark -> what its values, or the values in it, are made of."""


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``first`` overridden by ``second``, nested mappings likewise."""
    result = dict(first)
    for key, value in second.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = merged(before, value)
        result[key] = value
    return result


def slug(name: str) -> str:
    """A name for folders and configurations: nnU-Net splits names at double underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def as_json(benchmark: Benchmark) -> str:
    """Write a benchmark as JSON, without what is left at its default."""
    content = json.loads(TypeAdapter(Benchmark).dump_json(benchmark, exclude_defaults=True))
    return json.dumps(content, indent=2) + "\n"


def from_content(content: Any, where: str) -> Benchmark:
    """Make a benchmark of what a JSON file holds; ``where`` names the place in messages."""
    try:
        return TypeAdapter(Benchmark).validate_json(json.dumps(content))
    except ValidationError as error:
        listed = "".join(f"\n  - {_problem(each)}" for each in error.errors())
        raise UserError(f"{where} is not a valid benchmark:{listed}") from None


def _problem(error: "ErrorDetails") -> str:
    place = ".".join(map(str, error["loc"]))
    if error["type"] == "unexpected_keyword_argument":
        first, *inner = error["loc"]
        owner = _OWNERS[str(first)] if inner else Benchmark
        allowed = sorted(field.name for field in dataclasses.fields(owner))
        name = str(error["loc"][-1])
        return f"{place} is unknown.{did_you_mean(name, allowed)} Allowed: {', '.join(allowed)}."
    message = error["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def read(path: Path) -> Benchmark:
    """Read a benchmark file, or the one in a benchmark's folder."""
    if path.is_dir():
        path = path / FILE_NAME
    return from_content(read_json(path), str(path))


def claim(folder: Path, benchmark: Benchmark) -> None:
    """Make ``folder`` the home of this benchmark, which may add to the one that is there.

    Raises:
        UserError: If the folder holds something else, or a benchmark that differs in more
            than what it adds.
    """
    path = folder / FILE_NAME
    if path.exists():
        _refuse_another(read(path), benchmark, folder)
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is not empty and holds no benchmark. Name another folder with --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, json.loads(as_json(benchmark)))


def _refuse_another(before: Benchmark, now: Benchmark, folder: Path) -> None:
    old, new = (TypeAdapter(Benchmark).dump_python(each, mode="json") for each in (before, now))
    for content in (old, new):
        for kind in ("arms", "degradations"):
            content |= {f'{kind} "{name}"': value for name, value in content[kind].items()}
    differences = [
        f"{name} was {json.dumps(value)}, now {json.dumps(new[name])}"
        for name, value in old.items()
        if name not in MAY_GROW and value != new.get(name, value)
    ]
    if differences:
        raise UserError(
            f"{folder} holds another benchmark: {'; '.join(differences)}. Name another folder with "
            "--out, or another arm; what is finished would not be comparable. If nothing is "
            "finished, you may delete the folder."
        )
