"""Reads the progress of nnU-Net's commands from what they print."""

import re

from nnunet_ext.demo.display import StepDisplay
from nnunet_ext.nnunet.commands import LineReader, epoch_begun


def bar_reader(display: StepDisplay) -> LineReader:
    """Read the progress bars that nnU-Net prints while it plans and preprocesses."""
    activity = "starting"

    def read(line: str) -> None:
        nonlocal activity
        bar = re.search(r"\d+%\|.*\| (\d+)/(\d+) ", line)
        if bar:
            display.update(activity, int(bar[1]), int(bar[2]))
        elif re.match(r"(Fingerprint|Experiment planning|Preprocessing)", line):
            activity = line.rstrip(".").lower()
            display.update(activity)

    return read


def training_reader(display: StepDisplay, epochs: int | None) -> LineReader:
    """Read epochs, pseudo Dice and validation from what nnU-Net's trainers print."""
    epoch = 0

    def read(line: str) -> None:
        nonlocal epoch
        message = re.sub(r"^[\d-]+ [\d:.]+: ", "", line).strip()
        shown = f"epoch {epoch + 1}" + (f" of {epochs}" if epochs else "")
        if (begun := epoch_begun(line)) is not None:
            epoch = begun
            shown = f"epoch {epoch + 1}" + (f" of {epochs}" if epochs else "")
            display.update(shown, epoch, epochs)
        elif message.startswith("Pseudo dice"):
            scores = " ".join(_numbers(message.removeprefix("Pseudo dice")))
            display.update(f"{shown}, pseudo Dice {scores}", epoch + 1, epochs, milestone=True)
        elif match := re.fullmatch(r"predicting (\S+)", message):
            display.update(f"validating {match[1]}")

    return read


def _numbers(text: str) -> list[str]:
    """The numbers in a list that nnU-Net prints, which may read ``[np.float32(0.5), nan]``."""
    inner = re.sub(r"\w*\.?float\d+\(([^)]*)\)", r"\1", text)
    return [f"{float(number):.2f}" for number in re.findall(r"nan|\d+\.?\d*(?:e-?\d+)?", inner)]


def prediction_reader(display: StepDisplay, cases: int) -> LineReader:
    """Count the cases that nnU-Net's prediction begins; it prints one such line for each."""
    begun = 0

    def read(line: str) -> None:
        nonlocal begun
        if line.startswith("perform_everything_on_device:"):
            begun += 1
            display.update(f"case {begun} of {cases}", begun - 1, cases, milestone=True)

    return read
