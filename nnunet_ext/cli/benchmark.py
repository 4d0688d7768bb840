"""``nnunet-ext benchmark``: train many trainers on one data set, and see the answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from nnunet_ext._common.errors import UserError
from nnunet_ext.cli.demo import INTERRUPTED, find_device

if TYPE_CHECKING:
    from rich.console import Console

    from nnunet_ext.benchmark.layout import Layout
    from nnunet_ext.benchmark.spec import Benchmark

CLUSTERS = ("local", "slurm", "debug")

benchmark = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@benchmark.callback()
def _benchmark() -> None:
    """Compare trainers on one data set: train them all, then report."""


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


@benchmark.command("run", cls=ListsOfValues, short_help="Train every arm; go on where it stopped.")
def run(
    what: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="Data set (number or name), Decathlon task, benchmark file, or its folder.",
        ),
    ],
    trainers: Annotated[
        list[str] | None, typer.Option(metavar="A B C", help="Trainers; the first is the baseline.")
    ] = None,
    configurations: Annotated[
        list[str] | None,
        typer.Option(metavar="C", help="Configurations.", show_default="3d_fullres"),
    ] = None,
    folds: Annotated[
        list[int] | None, typer.Option(metavar="0 1 2", help="Folds.", show_default="0 1 2 3 4")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Trainings per fold.", show_default="1")
    ] = None,
    plans: Annotated[
        str | None, typer.Option(help="Plans, made if need be.", show_default="nnUNetPlans")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of every arm.")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Settings of all arms, as in configure."),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Arm to compare with.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The benchmark's folder.", show_default="benchmark_DATASET"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps; default is the best there is.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings at a time.", show_default="one per GPU"),
    ] = None,
    cluster: Annotated[str, typer.Option(help="local, slurm, or debug (no processes).")] = "local",
    partition: Annotated[str | None, typer.Option(help="Slurm: partition.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="Slurm: GPUs per job.")] = 1,
    cpus: Annotated[int, typer.Option(min=1, help="Slurm: cores per job.")] = 8,
    memory: Annotated[float, typer.Option(min=1, help="Slurm: GB of memory per job.")] = 32,
    hours: Annotated[
        float, typer.Option(min=0.1, help="Slurm: time limit; jobs go on in another one.")
    ] = 24,
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Slurm: other options of sbatch, account=imaging."),
    ] = None,
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
    from rich.console import Console

    from nnunet_ext._common.console import print_plain
    from nnunet_ext.benchmark import spec
    from nnunet_ext.benchmark.layout import Layout
    from nnunet_ext.benchmark.live import progress_shown, summary
    from nnunet_ext.benchmark.prepare import prepare
    from nnunet_ext.benchmark.schedule import Execution, Scheduler, only_one
    from nnunet_ext.nnunet import commands, discovery

    discovery.activate(force=True)
    if cluster not in CLUSTERS:
        raise UserError(f'--cluster is "{cluster}"; it must be one of {", ".join(CLUSTERS)}.')
    execution = Execution(
        cluster=cluster,  # type: ignore[arg-type]  # just checked
        # the machine that submits need not have the GPU that the job gets
        device=(device or "cuda") if cluster == "slurm" else find_device(device),
        jobs=jobs,
        partition=partition,
        gpus=gpus,
        cpus=cpus,
        memory_gb=memory,
        hours=hours,
        slurm_options=_pairs(slurm or []),
    )
    given = {
        "configurations": configurations,
        "folds": folds,
        "seeds": seeds,
        "plans": plans,
        "baseline": baseline,
        "settings": _settings(epochs, assignments or []),
    }
    given = {key: value for key, value in given.items() if value}
    console = Console()
    wanted, folder = _find(_converted(what, console), trainers or [], given, out)
    spec.claim(folder, wanted)
    layout = Layout(folder)
    try:
        with commands.termination_interrupts(), only_one(layout):
            prepared = prepare(layout, lambda step: print_plain(console, step))
            with progress_shown(console) as show:
                scheduler = Scheduler(layout, prepared, execution, show)
                scheduler.run()
            progress = scheduler.progress()
            if not console.is_terminal:  # where it is the last line already
                print_plain(console, summary(progress), "bold")
            _report(layout, console)
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. Run the same command again to go on from here.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if progress.with_status("failed"):
        raise typer.Exit(1)


def _converted(what: str, console: Console) -> str:
    """The data set that a Decathlon task becomes, fetched and converted if need be."""
    from nnunet_ext.cli.fetch import fetch_shown
    from nnunet_ext.nnunet import commands, decathlon
    from nnunet_ext.nnunet.datasets import RAW, nnunet_folder

    if what not in decathlon.TASKS:
        return what
    raw = nnunet_folder(RAW)
    task = decathlon.check_task_folder(fetch_shown(console, what, Path()))
    if not (raw / task.dataset_name).is_dir():
        command = ["nnUNetv2_convert_MSD_dataset", "-i", str(task.path)]
        command += ["-np", str(commands.workers())]
        commands.run_command(command, commands.environment("cpu"), task.path / "convert.log")
    return task.dataset_name


def _find(
    what: str, trainers: list[str], given: dict[str, Any], out: Path | None
) -> tuple[Benchmark, Path]:
    """The benchmark that is asked for, and its folder."""
    from nnunet_ext.benchmark import spec
    from nnunet_ext.nnunet.datasets import find_dataset

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
    from nnunet_ext.cli.configure import parse, put

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


@benchmark.command("report", short_help="Write the report of what is finished.")
def report(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A benchmark's folder.")],
    baseline: Annotated[
        str | None, typer.Option(help="Arm to compare with.", show_default="the benchmark's")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where it goes.", show_default="FOLDER/report")
    ] = None,
    images: Annotated[
        bool, typer.Option(help="Show cases; leave out for data that must not be spread.")
    ] = True,
) -> None:
    """Write FOLDER/report: one HTML page, the same as Markdown, and CSV files.

    Works at any time; what is not finished is said. `benchmark run` writes it at its end.

    \b
    Examples:
      nnunet-ext benchmark report benchmark_Dataset004_Hippocampus
      nnunet-ext benchmark report my_benchmark --no-images --out published
    """
    from rich.console import Console

    from nnunet_ext.benchmark.layout import Layout

    _report(Layout(folder), Console(), baseline, out, images)


def _report(
    layout: Layout,
    console: Console,
    baseline: str | None = None,
    out: Path | None = None,
    images: bool = True,
) -> None:
    from nnunet_ext._common.console import print_plain
    from nnunet_ext._common.files import write_json
    from nnunet_ext.benchmark import spec
    from nnunet_ext.benchmark.collect import collect, without_images
    from nnunet_ext.benchmark.report import write_report

    results = collect(layout, baseline)
    for problem in results.problems:
        print_plain(console, f"Problem: {problem}", "bold red")
    folder = out or layout.report
    page = write_report(results if images else without_images(results), folder, layout.root)
    spec.write(layout.benchmark, folder / spec.FILE_NAME)
    write_json(folder / "environment.json", results.environment)
    print_plain(console, f"Report: {page}")
