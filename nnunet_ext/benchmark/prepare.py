"""Everything before the first training: planning, preprocessing, folds, configurations.

nnU-Net's folders of the user are used for images and plans that are there, and planning and
preprocessing go there once. What a benchmark varies (settings, folds, noisy labels) goes into
folders of the benchmark's own, where the images are links.
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json, replacing, write_json
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.benchmark import label_noise
from nnunet_ext.benchmark.arms import Training, find_training
from nnunet_ext.benchmark.degradation import write_degraded
from nnunet_ext.benchmark.layout import Cell, Layout
from nnunet_ext.benchmark.spec import Benchmark, merged
from nnunet_ext.domains.assignment import Domains, read_domains, refuse_unfit_for_training
from nnunet_ext.domains.splits import SPLITS_FILE, Split
from nnunet_ext.nnunet import commands
from nnunet_ext.nnunet.datasets import (
    PREPROCESSED,
    RAW,
    find_dataset,
    nnunet_folder,
    number_of,
    training_cases,
)
from nnunet_ext.registry import PLANNERS
from nnunet_ext.settings import PLANS_KEY

STOCK_PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    "nnUNetResEncUNetMPlans": "nnUNetPlannerResEncM",
    "nnUNetResEncUNetLPlans": "nnUNetPlannerResEncL",
    "nnUNetResEncUNetXLPlans": "nnUNetPlannerResEncXL",
}
"""Name of plans -> planner of nnU-Net's that makes them."""

Plans = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """What the cells need to know.

    Attributes:
        trainings: Arm -> who trains it.
        folds: Fold -> its held-out cases.
        images: Case -> image files, one per channel, held-out cases only.
        file_ending: Of images and labels.
        test_images: Folder of the test set, or nothing.
        test_labels: Folder of its labels, or nothing.
        noisy: Cases whose training labels were corrupted.
        domains: Fold -> domains of its training cases.
    """

    trainings: dict[str, Training]
    folds: dict[int, list[str]]
    images: dict[str, list[str]]
    file_ending: str
    test_images: str | None
    test_labels: str | None
    noisy: list[str]
    domains: dict[int, list[str]] = field(default_factory=dict)


def read_prepared(layout: Layout) -> Prepared:
    """Read what :func:`prepare` found out.

    Raises:
        UserError: If the benchmark has not been prepared.
    """
    try:
        prepared: Prepared = TypeAdapter(Prepared).validate_json(layout.prepared.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{layout.root} has not been prepared ({error}); `nnunet-ext benchmark run` does that."
        ) from None
    return prepared


def prepare(layout: Layout, say: Say) -> Prepared:
    """Do everything that must be done once, unless it is done.

    Args:
        layout: The benchmark's folder.
        say: Told about steps that take time.

    Raises:
        UserError: If the data set, its plans or its folds do not serve the benchmark.
    """
    benchmark = layout.benchmark
    raw = nnunet_folder(RAW) / find_dataset(benchmark.dataset)
    dataset_json = read_json(raw / "dataset.json")
    cases = training_cases(raw)
    noisy: list[str] = []
    if benchmark.label_noise is None:
        folders = {name: nnunet_folder(name) for name in (RAW, PREPROCESSED)}
    else:
        noisy = _write_noisy_raw(layout, raw, cases)
        folders = {RAW: layout.noisy_raw, PREPROCESSED: layout.noisy_preprocessed}
    preprocessed = folders[PREPROCESSED] / benchmark.dataset
    splits = _splits(layout, sorted(cases))
    domains = read_domains(dataset_json, str(raw / "dataset.json"))
    trainings = {
        arm: _with_domains(find_training(benchmark, arm), layout, splits, domains)
        for arm in benchmark.arms
    }
    for arm, training in trainings.items():
        if training.problem:
            say(f"{arm} cannot be trained: {training.problem}")
        elif training.trainer != benchmark.arms[arm].trainer:
            say(f"{arm}: trained by {training.trainer}, which takes the settings")
    if all(training.problem for training in trainings.values()):
        raise UserError("None of the arms can be trained.")
    for plans in _names_of_plans(benchmark):
        _plan_and_preprocess(layout, folders, plans, len(cases), say)
    _write_preprocessed(layout, preprocessed, trainings, splits)
    _write_truth(
        layout, {case: Path(str(case_files["label"])) for case, case_files in cases.items()}
    )
    folds = {fold: splits[fold]["val"] for fold in benchmark.folds}
    held_out = sorted({case for fold in folds.values() for case in fold})
    prepared = Prepared(
        trainings,
        folds,
        {case: list(cases[case]["images"]) for case in held_out},
        dataset_json["file_ending"],
        *_test_set(raw),
        noisy,
        {
            fold: sorted({domains[case] for case in splits[fold]["train"] if case in domains})
            for fold in benchmark.folds
        },
    )
    _write_degraded_images(layout, prepared, say)
    write_json(layout.prepared, asdict(prepared))
    return prepared


# -------------------------------------------------------------------------------- raw and planned


def _test_set(raw: Path) -> tuple[str | None, str | None]:
    images, labels = raw / "imagesTs", raw / "labelsTs"
    if not images.is_dir() or not any(images.iterdir()):
        return None, None
    return str(images), str(labels) if labels.is_dir() and any(labels.iterdir()) else None


def _write_noisy_raw(
    layout: Layout, raw: Path, cases: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """A raw data set with corrupted labels, as a data set of the same name."""
    noise = layout.benchmark.label_noise
    assert noise is not None
    folder = layout.noisy_raw / layout.benchmark.dataset
    labels = folder / "labelsTr"
    labels.mkdir(parents=True, exist_ok=True)
    clean = {case: Path(str(files["label"])) for case, files in cases.items()}
    noisy = label_noise.corrupt(clean, labels, noise, raw)
    described = read_json(raw / "dataset.json")
    described["dataset"] = {
        case: {"images": list(files["images"]), "label": str(labels / Path(files["label"]).name)}
        for case, files in cases.items()
    }
    write_json(folder / "dataset.json", described)
    return noisy


def _names_of_plans(benchmark: Benchmark) -> list[str]:
    return list(dict.fromkeys(benchmark.plans_of(arm) for arm in benchmark.arms))


def _plan_and_preprocess(
    layout: Layout, folders: Mapping[str, Path], plans_name: str, cases: int, say: Say
) -> None:
    """Have nnU-Net make what is missing of plans and preprocessed images."""
    benchmark = layout.benchmark
    preprocessed = folders[PREPROCESSED] / benchmark.dataset
    number = number_of(benchmark.dataset)
    path = preprocessed / f"{plans_name}.json"
    workers = str(commands.workers())
    if path.exists():
        missing = [
            name
            for name in benchmark.configurations
            if not _is_preprocessed(preprocessed, _resolved(read_json(path), name, path), cases)
        ]
        command = ["nnUNetv2_preprocess", "-d", number, "-plans_name", plans_name]
        command += ["-c", *missing, "-np", *[workers] * len(missing)]
    else:
        missing = list(benchmark.configurations)
        command = ["nnUNetv2_plan_and_preprocess", "-d", number]
        command += ["-pl", planner_of(plans_name), "-c", *missing, "-npfp", workers]
        command += ["-np", *[workers] * len(missing)]
    if not missing:
        return
    say(f"$ {' '.join(command)}")
    environment = commands.environment("cpu") | {k: str(v) for k, v in folders.items()}
    preprocessed.parent.mkdir(parents=True, exist_ok=True)
    commands.run_command(command, environment, layout.root / "preprocess.log")
    content = read_json(path)
    for name in missing:
        if not _is_preprocessed(preprocessed, _resolved(content, name, path), cases):
            raise UserError(
                f"{preprocessed} holds not all {cases} cases of configuration {name} after "
                f"preprocessing. See {layout.root / 'preprocess.log'}."
            )


def planner_of(plans_name: str) -> str:
    """Name of the planner whose plans are called like this by default.

    Raises:
        UserError: If it is none of ours or nnU-Net's.
    """
    known = STOCK_PLANNERS | {planner.plans: name for name, planner in PLANNERS.items()}
    if plans_name not in known:
        raise UserError(
            f'There are no plans "{plans_name}" yet, and no planner is known to make them.'
            f"{did_you_mean(plans_name, known)} Known are {', '.join(known)}; make others with "
            "nnUNetv2_plan_and_preprocess -pl PLANNER -overwrite_plans_name NAME first."
        )
    return known[plans_name]


def _resolved(plans: Plans, name: str, path: Path) -> dict[str, Any]:
    """A configuration with what it inherits.

    Raises:
        UserError: If the plans do not have it, or it is the second stage of a cascade.
    """
    configurations = plans["configurations"]
    resolved: dict[str, Any] = {}
    wanted: str | None = name
    while wanted is not None:
        if wanted not in configurations:
            raise UserError(
                f'{path} has no configuration "{wanted}".{did_you_mean(wanted, configurations)} '
                f"There are: {', '.join(configurations)}."
            )
        resolved = {**configurations[wanted], **resolved}
        wanted = configurations[wanted].get("inherits_from")
    if resolved.get("previous_stage"):
        raise UserError(
            f'Configuration "{name}" is the second stage of a cascade, which a benchmark cannot '
            f'train yet. Its first stage "{resolved["previous_stage"]}" can be benchmarked alone.'
        )
    return resolved


def _is_preprocessed(preprocessed: Path, configuration: Mapping[str, Any], cases: int) -> bool:
    data = preprocessed / configuration["data_identifier"]
    return data.is_dir() and len(list(data.glob("*.pkl"))) >= cases


# ------------------------------------------------------------------------ the benchmark's folders


def _splits(layout: Layout, cases: list[str]) -> list[Split]:
    """Training and held-out cases of each fold; those of an earlier run stay."""
    users = nnunet_folder(PREPROCESSED, must_exist=False) / layout.benchmark.dataset / SPLITS_FILE
    own = layout.dataset / SPLITS_FILE
    if own.exists():
        splits = read_json(own)
    elif layout.benchmark.splits is not None:
        splits = [
            _split(split.validation, split.training, cases) for split in layout.benchmark.splits
        ]
    elif users.exists():
        splits = read_json(users)
    else:
        from nnunetv2.utilities.crossval_split import generate_crossval_split

        made = generate_crossval_split(cases)
        splits = [{key: [str(case) for case in split[key]] for key in split} for split in made]
    missing = [fold for fold in layout.benchmark.folds if fold >= len(splits)]
    if missing:
        raise UserError(
            f"There is no fold {missing[0]}: {own if own.exists() else users} has {len(splits)}."
        )
    unknown = {case for split in splits for part in split.values() for case in part} - set(cases)
    if unknown:
        raise UserError(
            f"The folds name cases that {layout.benchmark.dataset} does not have: "
            f"{', '.join(sorted(unknown)[:5])}."
        )
    return splits


def _split(validation: str, training: str | None, cases: Sequence[str]) -> Split:
    held_out = [case for case in cases if re.fullmatch(validation, case)]
    others = [case for case in cases if case not in held_out]
    if training is not None:
        others = [case for case in others if re.fullmatch(training, case)]
    for pattern, found in ((validation, held_out), (training or "the rest", others)):
        if not found:
            raise UserError(
                f"The split {pattern!r} matches no case. The first cases are: "
                f"{', '.join(cases[:5])}."
            )
    return {"train": others, "val": held_out}


def _with_domains(
    training: Training, layout: Layout, splits: Sequence[Split], domains: Domains
) -> Training:
    """Say before hours of training that a trainer misses domains in some fold."""
    if training.problem or not training.requires_domains:
        return training
    benchmark = layout.benchmark
    try:
        for fold in benchmark.folds:
            refuse_unfit_for_training(
                domains, splits[fold]["train"], training.trainer, benchmark.dataset, least=2
            )
    except UserError as error:
        return replace(training, problem=str(error))
    return training


def _write_preprocessed(
    layout: Layout,
    preprocessed: Path,
    trainings: Mapping[str, Training],
    splits: list[Split],
) -> None:
    layout.dataset.mkdir(parents=True, exist_ok=True)
    write_json(layout.dataset / SPLITS_FILE, splits)
    for name in ("dataset.json", "dataset_fingerprint.json"):
        shutil.copyfile(preprocessed / name, layout.dataset / name)
    for plans_name in _names_of_plans(layout.benchmark):
        path = preprocessed / f"{plans_name}.json"
        plans = read_json(path)
        for name in layout.benchmark.configurations:
            base = _resolved(plans, name, path)
            _link(preprocessed / base["data_identifier"], layout.dataset)
            plans["configurations"] |= _configurations(
                layout.benchmark, plans_name, name, base, trainings
            )
        write_json(layout.dataset / path.name, plans)


def _configurations(
    benchmark: Benchmark,
    plans_name: str,
    base_name: str,
    base: Mapping[str, Any],
    trainings: Mapping[str, Training],
) -> dict[str, dict[str, Any]]:
    """A configuration for each arm and seed."""
    changes = {k: v for k, v in asdict(benchmark.plan_changes).items() if v is not None}
    if "patch_size" in changes:
        changes["patch_size"] = list(changes["patch_size"])
        _check_patch(changes["patch_size"], base, base_name)
    made = {}
    for arm in benchmark.arms:
        if benchmark.plans_of(arm) != plans_name:
            continue
        settings = merged(base.get(PLANS_KEY, {}), benchmark.settings_of(arm))
        for seed in range(benchmark.seeds):
            seeded = {"seed": seed} if trainings[arm].seeded else {}
            made[Cell(arm, base_name, seed, None).trained_configuration] = {
                "inherits_from": base_name,
                "next_stage": None,  # nobody asked for the second stage of a cascade
                **changes,
                PLANS_KEY: settings | seeded,
            }
    return made


def _check_patch(patch: Sequence[int], base: Mapping[str, Any], name: str) -> None:
    strides = base["architecture"]["arch_kwargs"]["strides"]
    divisors = [prod(stage[axis] for stage in strides) for axis in range(len(strides[0]))]
    if len(patch) != len(divisors) or any(p % d for p, d in zip(patch, divisors, strict=True)):
        raise UserError(
            f"plan_changes.patch_size {list(patch)} does not suit configuration {name}: it must be "
            f"a multiple of {divisors}, by which the network divides it."
        )


def _link(source: Path, folder: Path) -> None:
    """A link to a folder with preprocessed images; a copy where links are not allowed."""
    link = folder / source.name
    if link.exists():
        return
    link.unlink(missing_ok=True)  # it leads nowhere any more
    try:
        link.symlink_to(source.resolve(), target_is_directory=True)
    except OSError:
        shutil.copytree(source, link)


def _write_truth(layout: Layout, labels: Mapping[str, Path]) -> None:
    """Clean labels, also where training uses noisy ones: nnU-Net validates against these."""
    layout.truth.mkdir(parents=True, exist_ok=True)
    for label in labels.values():
        copy = layout.truth / label.name
        if not copy.exists():
            with replacing(copy) as partial:
                shutil.copyfile(label, partial)


def _write_degraded_images(layout: Layout, prepared: Prepared, say: Say) -> None:
    for name, degradation in layout.benchmark.degradations.items():
        for fold, cases in prepared.folds.items():
            folder = layout.degraded / name / f"fold_{fold}"
            if not folder.is_dir():
                say(f"Degrade the {len(cases)} held-out images of fold {fold}: {name}")
            folder.mkdir(parents=True, exist_ok=True)
            for case in cases:
                for channel, image in enumerate(prepared.images[case]):
                    target = folder / f"{case}_{channel:04d}{prepared.file_ending}"
                    if not target.exists():
                        write_degraded(Path(image), target, degradation, seed=0)
