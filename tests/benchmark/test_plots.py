"""The plots of a report."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from nnunet_ext.benchmark import plots
from nnunet_ext.benchmark.analysis import Analysis, samples
from nnunet_ext.benchmark.results import Results
from tests.benchmark.synthetic_results import make_results

ODD = ("a $x_1$ & b", "<b>bold</b>", "日本語", "a name that is much longer than any plot is wide")
NAMESPACE = "{http://www.w3.org/2000/svg}"


def draw_all(**options: Any) -> dict[str, str]:
    """Every kind of plot."""
    results = make_results(Path("nowhere"), images=False, **options)
    return draw(results)


def draw(results: Results) -> dict[str, str]:
    frame = Analysis(results).comparison
    frame = frame[frame["metric"] == "dice"]
    whole, labels = frame[frame["scope"] == "all"], frame[frame["scope"] == "label"]
    styles = plots.arm_styles([*results.arms], results.baseline)
    drawn = {
        "strips": plots.strips(samples(results.scores, "dice", unit="case"), styles, "Dice"),
        "curves": plots.curves(results.curves, styles, "train_loss", "loss"),
    }
    if len(results.arms) > 1:
        drawn["forest"] = plots.forest(whole, styles, "difference")
        drawn["forest of labels"] = plots.forest(labels, styles, "difference")
    return drawn


def texts(svg: str) -> list[str]:
    return [
        "".join(each.itertext()) for each in ElementTree.fromstring(svg).iter(f"{NAMESPACE}text")
    ]


def test_equal_data_give_equal_bytes() -> None:
    assert draw_all() == draw_all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"arms": ("only",), "cases": 1, "folds": 1, "seeds": 1},
        {"arms": ODD},
        *(
            pytest.param(many, marks=pytest.mark.slow)
            for many in (
                {"arms": [f"arm {i}" for i in range(12)], "seeds": 1, "cases": 6},
                {"labels": {str(i): f"label {i}" for i in range(30)}, "cases": 4},
            )
        ),
    ],
    ids=["plain", "one case of one arm", "odd names", "12 arms", "30 labels"],
)
def test_plots_are_small_and_need_nothing_else(options: dict[str, Any]) -> None:
    for svg in draw_all(**options).values():
        ElementTree.fromstring(svg)
        assert len(svg) < 150_000
        addresses = re.findall(r'(?:href="|url\()([^")]*)', svg)
        assert all(address.startswith("#") for address in addresses)
        assert "<style" not in svg


def test_names_are_shown_as_they_are() -> None:
    shown = texts(draw_all(arms=ODD)["forest"])
    assert {"<b>bold</b>", "日本語"} <= set(shown)
    assert any(text.startswith("a name that") and text.endswith("plot is wide") for text in shown)
    assert any("a $x_1$ & b" in text for text in texts(draw_all(arms=ODD)["strips"]))


def test_plots_of_a_page_share_no_ids() -> None:
    drawn = draw_all().values()
    ids = [each for svg in drawn for each in re.findall(r' id="([^"]+)"', svg)]
    assert ids
    assert len(ids) == len(set(ids))
    for svg in drawn:
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
        assert used == set(re.findall(r' id="([^"]+)"', svg))


def test_text_fits_without_the_fonts_of_this_machine() -> None:
    svg = draw_all()["forest"]
    assert "<text" in svg
    assert "DejaVu Sans" in svg  # comes with matplotlib, and is wider than what pages use


def test_every_arm_looks_different() -> None:
    arms = [f"arm {i}" for i in range(12)]
    styles = plots.arm_styles(arms, "arm 3")
    assert len(set(styles.values())) == 12
    assert styles["arm 3"].colour == plots.BASELINE_COLOUR
    assert list(styles) == arms


def test_difference_without_an_interval_is_a_dot() -> None:
    frame = pd.DataFrame(
        {"name": "", "arm": ["a", "b"], "difference": [0.1, 0.2], "low": np.nan, "high": np.nan}
    )
    styles = plots.arm_styles(["base", "a", "b"], "base")
    assert texts(plots.forest(frame, styles, "difference"))[-3:] == ["difference", "a", "b"]


def test_long_trainings_are_averaged_to_few_points() -> None:
    epochs = np.arange(1000)
    frame = pd.DataFrame(
        {"arm": "a", "fold": 0, "seed": 0, "epoch": epochs, "train_loss": np.sin(epochs)}
    )
    svg = plots.curves(frame, plots.arm_styles(["a"], "a"), "train_loss", "loss")
    assert "epoch (means of 7)" in texts(svg)
    assert len(svg) < 20_000


def test_mean_curve_ends_where_the_first_training_ends() -> None:
    lengths = {0: 10, 1: 6}
    frame = pd.concat(
        pd.DataFrame(
            {"arm": "a", "fold": fold, "seed": 0, "epoch": range(n), "train_loss": range(n)}
        )
        for fold, n in lengths.items()
    )
    svg = plots.curves(frame, plots.arm_styles(["a"], "a"), "train_loss", "loss")
    (thick,) = re.findall(r'd="([^"]*)"[^>]*stroke-width: 1.7', svg)
    (thin, shorter) = re.findall(r'd="([^"]*)"[^>]*stroke-width: 0.5', svg)
    end = [float(path.split()[-2]) for path in (thick, thin, shorter)]
    assert end[0] == end[2] < end[1]


def test_many_dots_become_pixels() -> None:
    values = pd.DataFrame({"arm": "a", "subject": range(5000), "value": np.linspace(0, 1, 5000)})
    svg = plots.strips(values, plots.arm_styles(["a"], "a"), "Dice")
    assert "data:image/png" in svg
    assert len(svg) < 100_000


def test_numbers_along_the_axis_keep_their_digits() -> None:
    row = {"name": "", "arm": "b", "difference": 0.0004, "low": 0.0001, "high": 0.0007}
    styles = plots.arm_styles(["a", "b"], "a")
    shown = texts(plots.forest(pd.DataFrame([row]), styles, "difference"))
    ticks = [float(text) for text in shown if re.fullmatch(r"[0-9.]+", text)]
    assert len(ticks) > 3
    assert len(set(ticks)) == len(ticks)
