"""Everything before the first training: planning, preprocessing, folds, configurations.

nnU-Net's folders of the user are used for images and plans that are there, and planning and
preprocessing go there once. What a benchmark varies (settings, folds, noisy labels) goes into
folders of the benchmark's own, where the images are links.
"""

import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from nnunet_ext._common.console import some
from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import read_json, write_json
from nnunet_ext._common.near import did_you_mean
from nnunet_ext.benchmark.arms import Training, find_training
from nnunet_ext.benchmark.degradation import write_degraded
from nnunet_ext.benchmark.label_noise import LabelNoise, corrupt
from nnunet_ext.benchmark.layout import Cell, Layout
from nnunet_ext.benchmark.spec import Benchmark, merged, refuse_missing_folds
from nnunet_ext.domains.assignment import Domains, read_domains, refuse_unfit_for_training
from nnunet_ext.domains.splits import (
    SPLITS_FILE,
    Split,
    cases_of,
    divided_subjects,
    grouped_folds,
    nnunets_folds,
    read_splits,
)
from nnunet_ext.nnunet import commands
from nnunet_ext.nnunet.datasets import (
    DATASET_JSON,
    PREPROCESSED,
    RAW,
    find_dataset,
    nnunet_folder,
    number_of,
    training_cases,
)
from nnunet_ext.nnunet.images import copy_image
from nnunet_ext.nnunet.plans import Configuration, PlansFile
from nnunet_ext.registry import PLANNERS
from nnunet_ext.settings import PLANS_KEY

STOCK_PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    **{f"nnUNetResEncUNet{size}Plans": f"nnUNetPlannerResEnc{size}" for size in ("M", "L", "XL")},
}
"""Name of plans -> planner of nnU-Net's that makes them."""

Say = Callable[[str], object]
"""Is told about steps that take time."""
Cases = Mapping[str, Mapping[str, Any]]
"""Case -> its files, as :func:`nnunet_ext.nnunet.datasets.training_cases` finds them."""


@dataclass(frozen=True)
class Prepared:
    """What the cells need to know."""

    trainings: dict[str, Training]  # arm -> who trains it
    folds: dict[int, list[str]]  # fold -> its held-out cases
    images: dict[str, list[str]]  # case -> image files, one per channel, held-out cases only
    file_ending: str  # of images and labels
    test_images: str | None  # folder of the test set, or nothing
    test_labels: str | None  # folder of its labels, or nothing
    noisy: list[str]  # cases whose training labels were corrupted
    domains: dict[int, list[str]] = field(default_factory=dict)  # fold -> those it trains on


def read_prepared(layout: Layout) -> Prepared:
    """Read what :func:`prepare` found out."""
    try:
        prepared: Prepared = TypeAdapter(Prepared).validate_json(layout.prepared.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{layout.root} has not been prepared ({error}). First run: nnunet-ext benchmark run "
            f"{layout.root}"
        ) from None
    return prepared


def prepare(layout: Layout, say: Say) -> Prepared:
    """Do everything that must be done once, unless it is done."""
    benchmark = layout.benchmark
    raw = nnunet_folder(RAW) / find_dataset(benchmark.dataset)
    dataset_json = read_json(raw / DATASET_JSON)
    cases = training_cases(raw)
    noisy: list[str] = []
    folders = {name: nnunet_folder(name) for name in (RAW, PREPROCESSED)}
    if benchmark.label_noise is not None:
        noisy = _write_noisy_raw(layout, benchmark.label_noise, raw, cases)
        folders = {RAW: layout.noisy_raw, PREPROCESSED: layout.noisy_preprocessed}
    preprocessed = folders[PREPROCESSED] / benchmark.dataset
    domains = read_domains(dataset_json, str(raw / DATASET_JSON))
    splits = _splits(layout, sorted(cases), domains, say)
    trainings = _trainings(benchmark, splits, domains, say)
    for plans in {benchmark.plans_of(arm): None for arm in benchmark.arms}:
        _plan_and_preprocess(layout, folders, plans, len(cases), say)
        _write_preprocessed(layout, preprocessed, plans, trainings)
    write_json(layout.dataset / SPLITS_FILE, splits)
    layout.truth.mkdir(parents=True, exist_ok=True)
    for label in (Path(files["label"]) for files in cases.values()):
        # clean also where training uses noisy ones: nnU-Net validates against these
        if not (layout.truth / label.name).exists():
            copy_image(label, layout.truth / label.name)
    folds = {fold: splits[fold]["val"] for fold in benchmark.folds}
    test = [
        str(folder) if folder.is_dir() and any(folder.iterdir()) else None
        for folder in (raw / "imagesTs", raw / "labelsTs")
    ]
    prepared = Prepared(
        trainings,
        folds,
        {case: list(cases[case]["images"]) for fold in folds.values() for case in sorted(fold)},
        dataset_json["file_ending"],
        test[0],
        test[1] if test[0] else None,
        noisy,
        {
            fold: sorted({domains[case] for case in splits[fold]["train"] if case in domains})
            for fold in benchmark.folds
        },
    )
    _write_degraded_images(layout, prepared, say)
    write_json(layout.prepared, asdict(prepared))
    return prepared


def _trainings(
    benchmark: Benchmark, splits: Sequence[Split], domains: Domains, say: Say
) -> dict[str, Training]:
    """Who trains each arm, and before hours of training, which arms nobody can."""
    trainings = {arm: find_training(benchmark, arm) for arm in benchmark.arms}
    for arm, training in trainings.items():
        try:
            for fold in benchmark.folds if training.requires_domains else ():
                refuse_unfit_for_training(
                    domains, splits[fold]["train"], training.trainer, benchmark.dataset, least=2
                )
        except UserError as error:
            trainings[arm] = training = replace(training, problem=str(error))
        if training.problem:
            say(f"{arm} cannot be trained: {training.problem}")
        elif training.trainer != benchmark.arms[arm].trainer:
            stock = benchmark.arms[arm].trainer
            say(f"{arm}: trained by {training.trainer}, as {stock} reads no settings")
    if all(training.problem for training in trainings.values()):
        raise UserError("None of the arms can be trained, for the reasons above.")
    return trainings


# -------------------------------------------------------------------------------- raw and planned


def _write_noisy_raw(layout: Layout, noise: LabelNoise, raw: Path, cases: Cases) -> list[str]:
    """A raw data set with corrupted labels, as a data set of the same name."""
    folder = layout.noisy_raw / layout.benchmark.dataset
    labels = folder / "labelsTr"
    clean = {case: Path(files["label"]) for case, files in cases.items()}
    noisy = corrupt(clean, labels, noise, raw)
    listed = {
        case: {"images": list(files["images"]), "label": str(labels / clean[case].name)}
        for case, files in cases.items()
    }
    write_json(folder / DATASET_JSON, read_json(raw / DATASET_JSON) | {"dataset": listed})
    return noisy


def _plan_and_preprocess(
    layout: Layout, folders: Mapping[str, Path], plans_name: str, cases: int, say: Say
) -> None:
    """Have nnU-Net make what is missing of plans and preprocessed images."""
    dataset, missing = layout.benchmark.dataset, list(layout.benchmark.configurations)
    path = folders[PREPROCESSED] / dataset / f"{plans_name}.json"
    workers = str(commands.workers())
    if path.exists():
        missing = _not_preprocessed(path, missing, cases)
        command = ["nnUNetv2_preprocess", "-d", number_of(dataset), "-plans_name", plans_name]
    else:
        command = ["nnUNetv2_plan_and_preprocess", "-d", number_of(dataset)]
        command += ["-pl", planner_of(plans_name), "-npfp", workers, "--verify_dataset_integrity"]
    if not missing:
        return
    command += ["-c", *missing, "-np", *[workers] * len(missing)]
    say(f"$ {' '.join(command)}")
    path.parents[1].mkdir(parents=True, exist_ok=True)
    log = layout.root / "preprocess.log"
    variables = {name: str(path) for name, path in folders.items()}
    # trainings augment in this many processes, and 0 is right there; stock planners take it for
    # threads
    variables["nnUNet_n_proc_DA"] = workers
    commands.run_command(command, log, variables)
    if lacking := _not_preprocessed(path, missing, cases):
        raise UserError(
            f"{path.parent} does not hold all {cases} cases of configuration {lacking[0]} after "
            f"preprocessing. See {log}."
        )


def _not_preprocessed(path: Path, configurations: Sequence[str], cases: int) -> list[str]:
    plans = PlansFile(path)
    data = {
        name: path.parent / _resolved(plans, name)["data_identifier"] for name in configurations
    }
    return [name for name in configurations if len(list(data[name].glob("*.pkl"))) < cases]


def planner_of(plans_name: str) -> str:
    """Name of the planner whose plans are called like this by default."""
    known = STOCK_PLANNERS | {planner.plans: name for name, planner in PLANNERS.items()}
    if plans_name not in known:
        raise UserError(
            f'There are no plans "{plans_name}" yet, and no planner is known to make them.'
            f"{did_you_mean(plans_name, known)} Known are {', '.join(known)}; make others with "
            "nnUNetv2_plan_and_preprocess -pl PLANNER -overwrite_plans_name NAME first."
        )
    return known[plans_name]


def _resolved(plans: PlansFile, name: str) -> Configuration:
    """A configuration with what it inherits."""
    resolved = plans.resolve(name)
    if resolved.get("previous_stage"):
        raise UserError(
            f'Configuration "{name}" is the second stage of a cascade, which a benchmark cannot '
            f'train yet. Its first stage "{resolved["previous_stage"]}" can be benchmarked alone.'
        )
    return resolved


# ------------------------------------------------------------------------ the benchmark's folders


def _splits(layout: Layout, cases: list[str], domains: Domains, say: Say) -> list[Split]:
    """Training and held-out cases of each fold; those of an earlier run stay."""
    benchmark, path = layout.benchmark, layout.dataset / SPLITS_FILE
    users = nnunet_folder(PREPROCESSED, must_exist=False) / benchmark.dataset / SPLITS_FILE
    if path.exists():
        splits = read_splits(path)
    elif benchmark.splits is not None:
        splits = [_split(each.validation, each.training, cases) for each in benchmark.splits]
    else:
        path = users
        splits = read_splits(users) if users.exists() else nnunets_folds(cases)
        # also where nnU-Net has put its own into the user's folder: it knows of no subjects
        if benchmark.subject is not None and len(cases) >= 5 and splits == nnunets_folds(cases):
            known = domains if domains.keys() >= set(cases) else None
            splits = grouped_folds(cases, benchmark.subject_of, stratify=known)
    refuse_missing_folds(benchmark.folds, len(splits), str(path))
    if unknown := cases_of(splits) - set(cases):
        raise UserError(
            f"{path} has folds with cases that {benchmark.dataset} does not have: "
            f"{some(sorted(unknown))}. Correct or delete the file."
        )
    for fold, divided in enumerate(divided_subjects(splits, benchmark.subject_of)):
        if divided and fold in benchmark.folds:
            say(
                f"Warning: fold {fold} trains on other cases of {len(divided)} held-out subjects, "
                "so that its scores may be too high."
            )
    return splits


def _split(validation: str, training: str | None, cases: Sequence[str]) -> Split:
    held_out = [case for case in cases if re.fullmatch(validation, case)]
    others = [case for case in cases if case not in held_out]
    if training is not None:
        others = [case for case in others if re.fullmatch(training, case)]
    trains = f"besides matches {training!r}" if training else f"is left to train by {validation!r}"
    for what, found in ((f"matches {validation!r}", held_out), (trains, others)):
        if not found:
            raise UserError(f'"splits": no case {what}. There are: {some(cases)}.')
    return {"train": others, "val": held_out}


def _write_preprocessed(
    layout: Layout, preprocessed: Path, plans_name: str, trainings: Mapping[str, Training]
) -> None:
    """Plans with a configuration for each arm and seed, beside links to the images."""
    benchmark = layout.benchmark
    layout.dataset.mkdir(parents=True, exist_ok=True)
    for name in (DATASET_JSON, "dataset_fingerprint.json"):
        shutil.copyfile(preprocessed / name, layout.dataset / name)
    plans = PlansFile(preprocessed / f"{plans_name}.json")
    for name in benchmark.configurations:
        base = _resolved(plans, name)
        _link(preprocessed / base["data_identifier"], layout.dataset)
        changes = {key: value for key, value in asdict(benchmark.plan_changes).items() if value}
        if "patch_size" in changes:
            _check_patch(changes["patch_size"], base, name)
        for arm, seed in product(benchmark.arms, range(benchmark.seeds)):
            if benchmark.plans_of(arm) == plans_name:
                made = Cell(arm, name, seed, None).trained_configuration
                settings = merged(base.get(PLANS_KEY, {}), benchmark.settings_of(arm))
                plans.configurations[made] = {
                    "inherits_from": name,
                    "next_stage": None,  # nobody asked for the second stage of a cascade
                    **changes,
                    PLANS_KEY: settings | ({"seed": seed} if trainings[arm].seeded else {}),
                }
    write_json(layout.dataset / f"{plans_name}.json", plans.content)


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
