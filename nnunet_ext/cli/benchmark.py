"""``nnunet-ext benchmark``: train many trainers on one data set, and see the answer."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer import Argument, Option
from typer.core import TyperCommand

from nnunet_ext._common.console import resumable, say
from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark import spec
from nnunet_ext.benchmark.collect import gather
from nnunet_ext.benchmark.layout import layouts
from nnunet_ext.benchmark.live import progress_shown, summary
from nnunet_ext.benchmark.prepare import prepare
from nnunet_ext.benchmark.report import write_report
from nnunet_ext.benchmark.results import FRAMES, without_images
from nnunet_ext.benchmark.schedule import Execution, Scheduler, only_one
from nnunet_ext.benchmark.spec import Benchmark
from nnunet_ext.cli.configure import parse, put
from nnunet_ext.cli.fetch import fetch_shown
from nnunet_ext.cli.options import Images
from nnunet_ext.nnunet import decathlon, discovery
from nnunet_ext.nnunet.commands import termination_interrupts
from nnunet_ext.nnunet.datasets import RAW, find_dataset, nnunet_folder

CLUSTERS = ("local", "slurm", "debug")
DEVICES = ("cpu", "cuda", "mps")

command = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@command.callback()
def _benchmark() -> None:
    """Compare trainers on one data set or several: train them all, then report."""


class ListsOfValues(TyperCommand):
    """Reads ``--trainers A B C`` like nnU-Net's commands do: all values behind one option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each value, which is how click wants it."""
        lists = {
            name
            for parameter in self.params
            if getattr(parameter, "multiple", False)
            for name in parameter.opts
        }
        spread: list[str] = []
        option = None
        for position, argument in enumerate(args):
            if argument.startswith("-"):
                option = argument if argument in lists else None
            elif option is not None and args[position - 1] != option:
                spread.append(option)
            spread.append(argument)
        return super().parse_args(ctx, spread)


Given = Annotated[
    str,
    Argument(
        metavar="DATASET",
        help="Data set (number or name), Decathlon task, benchmark file, or its folder.",
    ),
]
Trainers = Annotated[
    list[str] | None, Option(metavar="A B C", help="Trainers; the first is the baseline.")
]
Configurations = Annotated[
    list[str] | None, Option(metavar="C", help="Configurations.", show_default="3d_fullres")
]
Folds = Annotated[
    list[int] | None, Option(metavar="0 1 2", help="Folds.", show_default="0 1 2 3 4")
]
Seeds = Annotated[int | None, Option(min=1, help="Trainings per fold.", show_default="1")]
Plans = Annotated[
    str | None, Option(help="Name of the plans; made if missing.", show_default="nnUNetPlans")
]
Set = Annotated[
    list[str] | None,
    Option(
        "--set", metavar="KEY=VALUE", help="A setting of every arm, as in `nnunet-ext configure`."
    ),
]
Baseline = Annotated[str | None, Option(help="Arm (trainer) to compare with.")]
Out = Annotated[
    Path | None, Option(help="The benchmark's folder.", show_default="benchmark_DATASET")
]
Device = Annotated[
    str | None, Option(help="cpu, cuda or mps; default: cuda if there is one, else cpu.")
]
Jobs = Annotated[int | None, Option(min=1, help="Trainings at a time.", show_default="one per GPU")]
Hours = Annotated[
    float, Option(min=0.1, help="Slurm: hours per job; longer trainings continue in another job.")
]
Slurm = Annotated[
    list[str] | None,
    Option(metavar="KEY=VALUE", help="Slurm: other options of sbatch, such as account=imaging."),
]


@command.command("run", cls=ListsOfValues, short_help="Train every arm; go on where it stopped.")
def run(
    what: Given,
    trainers: Trainers = None,
    configurations: Configurations = None,
    folds: Folds = None,
    seeds: Seeds = None,
    plans: Plans = None,
    epochs: Annotated[int | None, Option(min=1, help="Epochs of every arm.")] = None,
    assignments: Set = None,
    baseline: Baseline = None,
    out: Out = None,
    device: Device = None,
    jobs: Jobs = None,
    cluster: Annotated[str, Option(help="local, slurm, or debug (in this process).")] = "local",
    partition: Annotated[str | None, Option(help="Slurm: partition.")] = None,
    gpus: Annotated[int, Option(min=1, help="Slurm: GPUs per job.")] = 1,
    cpus: Annotated[int, Option(min=1, help="Slurm: cores per job.")] = 8,
    memory: Annotated[float, Option(min=1, help="Slurm: GB of memory per job.")] = 32,
    hours: Hours = 24,
    slurm: Slurm = None,
) -> None:
    """Train trainers on the same folds and seeds with nnU-Net's own commands, then report.

    Plans and preprocesses if need be, trains, validates, predicts the test images if there
    are any. What is finished is skipped, what was interrupted goes on, what fails is shown
    and the rest goes on: run the same command again at any time, or give it the folder.

    \b
    Examples:
      nnunet-ext benchmark run 4 --trainers nnUNetTrainer CateNormTrainer --folds 0 1 --seeds 2
      nnunet-ext benchmark run 4 --trainers CateNormTrainer --epochs 250 --cluster slurm \\
          --partition gpu --hours 12
      nnunet-ext benchmark run my_benchmark.json --out results
      nnunet-ext benchmark run results
    """
    discovery.activate(force=True)
    if cluster not in CLUSTERS:
        raise UserError(f'--cluster is "{cluster}"; it must be one of {", ".join(CLUSTERS)}.')
    # the machine that submits need not have the GPU that the job gets
    device = (device or "cuda") if cluster == "slurm" else find_device(device)
    asked = {
        "timeout_min": round(hours * 60),
        "mem_gb": memory,
        "cpus_per_task": cpus,
        "gpus_per_node": gpus if device == "cuda" else 0,
        "slurm_additional_parameters": _pairs(slurm or []),
        **({"slurm_partition": partition} if partition else {}),
    }
    execution = Execution(cluster, device, jobs, asked)  # type: ignore[arg-type]  # just checked
    given: dict[str, Any] = {"configurations": configurations, "folds": folds, "seeds": seeds}
    given |= {"plans": plans, "baseline": baseline}
    given["settings"] = _settings(epochs, assignments or [])
    given = {key: value for key, value in given.items() if value}
    with resumable():
        wanted, folder = _find(_converted(what), trainers or [], given, out)
        all_done = run_shown(wanted, folder, execution)
        _report(folder)
    if not all_done:
        raise typer.Exit(1)


def run_shown(wanted: Benchmark, folder: Path, execution: Execution) -> bool:
    """Run a benchmark in its folder and show how it goes; return whether nothing has failed."""
    parts = spec.one_by_one(wanted)
    for part in parts:
        find_dataset(part.dataset)
    spec.claim(folder, wanted)
    failed = 0
    with termination_interrupts(), only_one(folder):
        each = list(zip(parts, layouts(folder), strict=True))
        for part, layout in each:  # a mistake must not come to light after hours of training
            if wanted.datasets:
                spec.claim(layout.root, part)
            prepare(layout, say)
        for part, layout in each:
            if wanted.datasets:
                say(part.dataset, "bold")
            scheduler = Scheduler(layout, execution)
            with progress_shown(Console()) as show:
                scheduler.run(show)
            say(summary(scheduler), "bold")
            failed += len(scheduler.with_status("failed"))
    return not failed


def find_device(wished: str | None) -> str:
    """The device to use; a wished one must be there."""
    if wished is not None and wished not in DEVICES:
        raise UserError(f'--device is "{wished}"; it must be one of {", ".join(DEVICES)}.')
    if wished == "cpu":
        return wished
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wished is None:
        # mps only on request: not every 3D operation exists there
        return "cuda" if present["cuda"] else "cpu"
    if not present[wished]:
        raise UserError(f"There is no {wished} device on this machine; try --device cpu.")
    return wished


def _converted(what: str) -> str:
    """The data set that a Decathlon task becomes, fetched and converted if need be."""
    if what not in decathlon.TASKS:
        return what
    nnunet_folder(RAW)  # before hours of download
    return decathlon.convert(fetch_shown(what, Path()))


def _find(
    what: str, trainers: list[str], given: dict[str, Any], out: Path | None
) -> tuple[Benchmark, Path]:
    """The benchmark that is asked for, and its folder."""
    path = Path(what)
    if path.suffix == ".json" or (path / spec.FILE_NAME).exists():
        if trainers or given:
            options = ["trainers"] * bool(trainers) + list(given)
            option = {"settings": "--epochs or --set"}.get(options[0], f"--{options[0]}")
            raise UserError(
                f"{path} says what to run; {option} would contradict it. Change the file instead."
            )
        folder = path if path.is_dir() else Path(f"benchmark_{path.stem}")
        return spec.read(path), out or folder
    if not trainers:
        raise UserError(
            "Say what to compare, for example: --trainers nnUNetTrainer CateNormTrainer"
        )
    dataset = find_dataset(what)
    if given.get("baseline") not in (None, *trainers):
        raise UserError(
            f"--baseline {given['baseline']} is none of the trainers {', '.join(trainers)}."
        )
    content = {"dataset": dataset, "arms": {name: {"trainer": name} for name in trainers}, **given}
    return spec.from_content(content, "The command line"), out or Path(f"benchmark_{dataset}")


def _settings(epochs: int | None, assignments: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {} if epochs is None else {"num_epochs": epochs}
    for assignment in assignments:
        path, value = parse(assignment)
        put(settings, path, value, "--set")
    return settings


def _pairs(options: list[str]) -> dict[str, str]:
    for option in options:
        if "=" not in option:
            raise UserError(f"--slurm {option}: expected KEY=VALUE, for example account=imaging.")
    return dict(option.split("=", 1) for option in options)


@command.command("report", short_help="Write the report of what is finished.")
def report(
    folder: Annotated[
        Path, Argument(metavar="FOLDER", help="Folder of a benchmark, or of a former report.")
    ],
    baseline: Baseline = None,
    out: Annotated[
        Path | None, Option(help="Folder to write to.", show_default="FOLDER/report")
    ] = None,
    images: Images = True,
) -> None:
    """Write FOLDER/report: one HTML page, the same as Markdown, CSV and JSON files.

    Works at any time; the report says what is not finished. `benchmark run` writes it at its
    end. The files beside the page are a record, from which this command makes the page again.

    \b
    Examples:
      nnunet-ext benchmark report benchmark_Dataset004_Hippocampus
      nnunet-ext benchmark report my_benchmark --no-images --out published
      nnunet-ext benchmark report published --out page
    """
    _report(folder, baseline, out, images)


def _report(
    folder: Path, baseline: str | None = None, out: Path | None = None, images: bool = True
) -> None:
    folder = folder.expanduser().resolve()
    results = [each if images else without_images(each) for each in gather(folder, baseline)]
    for problem in (problem for each in results for problem in each.problems):
        say(f"Problem: {problem}", "bold red")
    is_record = (folder / FRAMES["scores"]).exists()  # beside which the page goes
    target = out or (folder if is_record else folder / "report")
    say(f"Report: {write_report(results, target, folder)}")
