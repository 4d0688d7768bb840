import io
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.console import Console

from nnunet_ext.cli.settings_table import Setting, settings_of, settings_table
from nnunet_ext.settings import TrainingSettings


@dataclass(frozen=True)
class Example:
    text: str
    a_rather_long_name_of_a_setting: Annotated[
        int | None, Field(ge=1, lt=9, description="how many of them there are in all")
    ] = None
    kind: Literal["one", "two"] = "one"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    pair: tuple[int, bool] = (1, True)
    several: tuple[int, ...] = ()


def test_settings_are_read_from_the_class_with_their_allowed_values() -> None:
    assert settings_of(Example) == [
        Setting("text", "required", "text", ""),
        Setting(
            "a_rather_long_name_of_a_setting",
            "null",
            "integer >= 1, < 9 | null",
            "how many of them there are in all",
        ),
        Setting("kind", '"one"', '"one" | "two"', ""),
        Setting("share", "0.5", "number > 0, <= 1", ""),
        Setting("pair", "[1, true]", "[integer, true | false]", ""),
        Setting("several", "[]", "list of integer", ""),
    ]


def test_every_training_setting_says_what_it_does() -> None:
    assert all(setting.description for setting in settings_of(TrainingSettings))


def test_narrow_table_wraps_words_but_never_names() -> None:
    output = io.StringIO()
    table = settings_table(settings_of(Example), prefix="method.")
    Console(file=output, width=60).print(table)
    text = output.getvalue()
    assert "method.a_rather_long_name_of_a_setting" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 60
