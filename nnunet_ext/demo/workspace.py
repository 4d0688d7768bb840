"""The working folder of a demo: where everything is, and which steps are finished."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from nnunet_ext._common.errors import UserError
from nnunet_ext._common.files import write_json


@dataclass(frozen=True)
class Parameters:
    """What decides the result; a demo resumes only with the same parameters.

    Attributes:
        trainer: Name of the trainer class.
        data: A Decathlon task folder of the user's, or None.
        task: Name of a Decathlon task to download, or None.
        epochs: Epochs of training, None if only the trainer knows.
        iterations: Batches per epoch, None if the trainer does not read the settings.
        cases: Training cases to generate, None where none are.
        seed: Seed of the generated data and of training.
    """

    trainer: str
    data: str | None = None
    task: str | None = None
    epochs: int | None = None
    iterations: int | None = None
    cases: int | None = None
    seed: int = 0


class Workspace:
    """The folder of one demo.

    Args:
        root: The folder; need not exist.
        parameters: What this run is asked to do.

    Raises:
        UserError: If the folder holds something else, or a demo with other parameters.
    """

    def __init__(self, root: Path, parameters: Parameters) -> None:
        self.root = root.expanduser().resolve()
        self.parameters = parameters
        self._seconds: dict[str, float] = {}
        self._claim()

    @property
    def raw(self) -> Path:
        """Data sets in nnU-Net's raw format."""
        return self.root / "nnUNet_raw"

    @property
    def preprocessed(self) -> Path:
        """Preprocessed data sets and plans."""
        return self.root / "nnUNet_preprocessed"

    @property
    def results(self) -> Path:
        """Trained models."""
        return self.root / "nnUNet_results"

    @property
    def variables(self) -> dict[str, str]:
        """nnU-Net's three environment variables."""
        return {folder.name: str(folder) for folder in (self.raw, self.preprocessed, self.results)}

    @property
    def predictions(self) -> Path:
        """Predicted test cases."""
        return self.root / "predictions"

    @property
    def logs(self) -> Path:
        """What nnU-Net's commands print."""
        return self.root / "logs"

    @property
    def picture(self) -> Path:
        """The picture of three cases."""
        return self.root / "demo.png"

    @property
    def summary(self) -> Path:
        """The tables as text."""
        return self.root / "summary.txt"

    @property
    def _record(self) -> Path:
        return self.root / "demo.json"

    @property
    def seconds(self) -> dict[str, float]:
        """Finished step -> how long it took."""
        return dict(self._seconds)

    def is_finished(self, step: str) -> bool:
        """Whether an earlier run has finished the step."""
        return step in self._seconds

    def begin(self, step: str, later: list[str]) -> None:
        """Forget that a step and those after it were ever finished."""
        for name in (step, *later):
            self._seconds.pop(name, None)
        self._save()

    def finish(self, step: str, seconds: float) -> None:
        """Remember that a step is finished."""
        self._seconds[step] = round(seconds, 1)
        self._save()

    def _claim(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"{self.root} is a file; name a folder with --out.")
        if self._record.exists():
            self._resume()
        elif self.root.is_dir() and any(not p.name.startswith("Task") for p in self.root.iterdir()):
            # an archive or a folder of a Decathlon task may have been put there by hand
            raise UserError(
                f"{self.root} is not empty and holds no demo. Name another folder with --out."
            )
        else:
            self.root.mkdir(parents=True, exist_ok=True)
            self._save()

    def _resume(self) -> None:
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            before = Parameters(**record["parameters"])
            self._seconds = dict(record["finished"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{self._record} cannot be read ({error}). Name another folder with --out, or "
                "remove this one."
            ) from None
        names = [field.name for field in fields(Parameters)]
        differences = [
            f"{name} {_shown(getattr(before, name))}, now {_shown(getattr(self.parameters, name))}"
            for name in names
            if getattr(before, name) != getattr(self.parameters, name)
        ]
        if differences:
            raise UserError(
                f"{self.root} holds a demo with other parameters: {'; '.join(differences)}. Name "
                "another folder with --out, or remove this one."
            )

    def _save(self) -> None:
        write_json(self._record, {"parameters": asdict(self.parameters), "finished": self._seconds})


def _shown(value: object) -> str:
    return "not set" if value is None else str(value)
