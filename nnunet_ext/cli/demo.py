"""``nnunet-ext demo``: from images to Dice scores with one command."""

from pathlib import Path
from typing import Annotated

import typer

from nnunet_ext._common.errors import UserError

DEVICES = ("cpu", "cuda", "mps")
INTERRUPTED = 130
"""Exit code of a shell for a command that Ctrl-C ended."""


def demo(
    out: Annotated[
        Path, typer.Option(help="Working folder; an interrupted demo goes on from there.")
    ] = Path("nnunet_ext_demo"),
    data: Annotated[
        Path | None, typer.Option(help="Folder of a Decathlon task, instead of synthetic data.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Decathlon task to download, such as Task04_Hippocampus.")
    ] = None,
    trainer: Annotated[str, typer.Option(help="Who trains.")] = "CateNormTrainer",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs of training.", show_default="15")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=1, help="Batches per epoch.", show_default="20")
    ] = None,
    cases: Annotated[
        int | None, typer.Option(min=5, help="Synthetic training cases.", show_default="24")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the data and of training.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or mps; default is the best there is.")
    ] = None,
) -> None:
    """Show the whole way on a small task: data, plan, training, prediction, scores, picture.

    Without options it makes a synthetic 3D task and takes some minutes without a GPU. All
    steps are nnU-Net's own commands, which are shown as they run. Everything stays in the
    working folder: the plans, the model, the predictions, summary.txt and demo.png.

    \b
    Examples:
      nnunet-ext demo
      nnunet-ext demo --task Task04_Hippocampus --epochs 50 --out hippocampus
      nnunet-ext demo --trainer nnUNetTrainer --epochs 5 --out stock
    """
    from rich.console import Console

    from nnunet_ext.demo import pipeline, report, workspace
    from nnunet_ext.demo.trainers import choose_trainer
    from nnunet_ext.nnunet import commands, decathlon

    _refuse_contradictions(data, task, cases)
    if data is not None:
        data = decathlon.check_task_folder(data).path
    if task is not None:
        task = decathlon.find_task(task).name
    chosen = choose_trainer(trainer, epochs, pipeline.DEFAULT_EPOCHS)
    if iterations and not chosen.reads_settings:
        raise UserError(f"{chosen.name} always trains 250 batches per epoch; omit --iterations.")
    device = find_device(device)
    parameters = workspace.Parameters(
        trainer=chosen.name,
        data=None if data is None else str(data),
        task=task,
        epochs=chosen.epochs,
        iterations=(iterations or pipeline.DEFAULT_ITERATIONS) if chosen.reads_settings else None,
        cases=None if data or task else cases or pipeline.DEFAULT_CASES,
        seed=seed,
    )
    console = Console()
    work = workspace.Workspace(out, parameters)
    steps = pipeline.Pipeline(parameters, work, chosen, device, console)
    try:
        with commands.termination_interrupts():
            steps.run()
            report.publish(steps, console)
    except KeyboardInterrupt:
        typer.echo("\nInterrupted. Run the same command again to go on from here.", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _refuse_contradictions(data: Path | None, task: str | None, cases: int | None) -> None:
    if data is not None and task is not None:
        raise UserError("--data and --task exclude each other: both say which task to use.")
    if cases is not None and (data is not None or task is not None):
        raise UserError("--cases is for synthetic data; a Decathlon task is used as it is.")


def find_device(wished: str | None) -> str:
    """The device to use; a wished one must be there.

    Raises:
        UserError: If it is not.
    """
    if wished is not None and wished not in DEVICES:
        raise UserError(f'--device is "{wished}"; it must be one of {", ".join(DEVICES)}.')
    if wished == "cpu":
        return wished
    import torch

    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wished is None:
        # mps only on request: not every 3D operation exists there
        return "cuda" if present["cuda"] else "cpu"
    if not present[wished]:
        raise UserError(f"There is no {wished} device on this machine; try --device cpu.")
    return wished
