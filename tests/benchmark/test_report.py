"""The report of a benchmark: a page, the same as Markdown, and CSV files."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from nnunet_ext._common.errors import UserError
from nnunet_ext.benchmark.analysis import samples
from nnunet_ext.benchmark.report import write_report
from nnunet_ext.benchmark.results import Results
from nnunet_ext.evaluation.statistics import ranks
from tests.benchmark.synthetic_results import ARMS, make_results, unscored, without

FILES = {"index.html", "report.md", "benchmark.json", "environment.json", "record.json"} | {
    f"{name}.csv" for name in ("scores", "comparison", "ranking", "cost", "runs", "curves")
}
VOID = {"meta", "img", "br", "hr"}
ODD = ("<b>odd</b>", "a&b|c", 'quo"ted', "{{ 1 }} $x$ *y*", "name_with_lines")


class Reader(HTMLParser):
    """Reads a page; complains of tags that do not match.

    Attributes:
        tables: Texts of the cells of every table, row by row.
        addresses: Whatever an attribute refers to.
        links: Where links lead.
        ids: All ids.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids += [found["id"]] if "id" in found else []
        (self.links if tag == "a" else self.addresses).extend(
            value for name, value in found.items() if name in ("href", "xlink:href", "src", "data")
        )
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & set(self._open):
            self.tables[-1][-1][-1] += data + " "


def numbers(text: str) -> list[str]:
    return re.findall(r"[+\N{MINUS SIGN}]?\d+\.\d+", text)


def without_baseline(results: Results) -> Results:
    return without(results, arm=ARMS[0])


def without_values(results: Results) -> Results:
    results.scores[["dice", "nsd", "hd95", "assd"]] = np.nan
    return results


def without_images(results: Results) -> Results:
    hidden = dict.fromkeys(["image", "truth", "prediction"], "")
    return replace(results, scores=results.scores.assign(**hidden))


def never_started(results: Results) -> Results:
    """As a caller may hand it over who has nothing to fill the frames with."""
    empty = {name: getattr(results, name).iloc[:0] for name in ("scores", "curves", "cells")}
    return replace(results, **empty, environment={}, description="")


SEEN = "photographs, domains, degradations"
CASES: dict[str, tuple[dict[str, Any], Callable[[Results], Results]]] = {
    "plain": ({"images": True}, lambda results: results),
    SEEN: (
        {
            "images": True,
            "photographs": True,
            "domains": ("A", "B"),
            "unseen": "B",
            "degradations": ("blur", "noise"),
            "labels": {"1": "vessel"},
            "cases_per_subject": 2,
        },
        lambda results: results,
    ),
    "one arm": ({"arms": ("only",)}, lambda results: results),
    "one case": ({"cases": 1, "folds": 1, "seeds": 1}, lambda results: results),
    "nothing finished": ({}, unscored),
    "never started": ({}, never_started),
    "no values": ({}, without_values),
    "an arm without values": ({}, lambda results: without(results, arm=ARMS[2])),
    "no baseline": ({}, without_baseline),
    "images not to be shown": ({"images": True, "photographs": True}, without_images),
    "missing seed": ({}, lambda results: without(results, arm=ARMS[1], seed=1)),
    "missing fold": ({}, lambda results: without(results, arm=ARMS[1], fold="1")),
    "odd names": (
        {"arms": ODD, "labels": {str(i): name for i, name in enumerate(ODD, 1)}, "domains": ODD},
        lambda results: replace(results, title=ODD[0], description=ODD[3], problems=[*ODD]),
    ),
    "two configurations and a test set": (
        {"configurations": ("2d", "3d_fullres"), "test_cases": 15},
        lambda results: results,
    ),
    "twelve arms": ({"arms": [f"arm {i}" for i in range(12)]}, lambda results: results),
    "thirty labels": (
        {"labels": {str(i): f"organ {i}" for i in range(1, 31)}, "arms": ARMS[:2]},
        lambda results: results,
    ),
}


SLOW = (
    "an arm without values",
    "images not to be shown",
    "missing fold",
    "two configurations and a test set",
    "twelve arms",
    "thirty labels",
)


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=[pytest.mark.slow] * (case in SLOW)) for case in CASES],
)
def page(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of each kind."""
    options, change = CASES[request.param]
    folder = tmp_path_factory.mktemp("report")
    few = {"cases": 14, "images": False} | options
    return write_report(change(make_results(folder, **few)), folder / "report", folder)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 3 arms, 2 folds, 2 seeds and 2 labels, one training of which has failed."""
    folder = tmp_path_factory.mktemp("plain")
    results = without(make_results(folder), arm=ARMS[1], fold="0", seed=1)
    return write_report(results, folder / "report", folder)


def test_page_is_well_formed_and_needs_no_other_file(page: Path) -> None:
    reader = Reader(page.read_text(encoding="utf-8"))
    assert all(address.startswith(("#", "data:image/")) for address in reader.addresses)
    assert not re.search(r"url\((?!#)|@import", page.read_text())
    assert len(reader.ids) == len(set(reader.ids))
    inner = [link[1:] for link in reader.links if link.startswith("#")]
    assert inner
    assert set(inner) <= set(reader.ids)
    outer = [link for link in reader.links if not link.startswith("#")]
    assert all(
        link.startswith(("https://doi.org/", "https://www.jstor.org/", "../")) for link in outer
    )
    assert page.stat().st_size < 3_000_000


def test_report_is_complete_and_nothing_half_written(page: Path) -> None:
    assert {path.name for path in page.parent.iterdir()} == FILES


def test_markdown_has_the_tables_of_the_page(page: Path) -> None:
    html = MarkdownIt("commonmark").enable("table").render((page.parent / "report.md").read_text())
    ours, theirs = (Reader(text).tables for text in (page.read_text(), html))
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert numbers(str(one)) == numbers(str(other))
        assert [len(row) for row in one] == [len(row) for row in other]


def test_names_are_never_taken_for_markup(tmp_path: Path) -> None:
    options, change = CASES["odd names"]
    results = change(make_results(tmp_path, cases=6, images=False, **options))
    html = write_report(results, tmp_path).read_text()
    assert "<b>odd" not in html
    cells = {cell.strip() for table in Reader(html).tables for row in table for cell in row}
    assert set(ODD[1:]) <= cells
    assert {f"label: {name}" for name in ODD} <= cells


def test_files_hold_the_numbers_of_the_page(plain: Path) -> None:
    tables = Reader(plain.read_text()).tables
    answer = next(table for table in tables if "Dice ↑" in str(table[0]))
    frame = pd.read_csv(plain.parent / "comparison.csv")
    frame = frame[(frame["scope"] == "all") & (frame["arm"] == ARMS[2])].set_index("metric")
    cells = [cell for cell in answer[3] if "[" in cell]
    for cell, metric in zip(cells, ("dice", "nsd", "hd95", "assd"), strict=True):
        decimals = 3 if metric in ("dice", "nsd") else 2
        row = frame.loc[metric]
        expected = [row[key] for key in ("mean", "difference", "low", "high")]
        found = [float(text.replace("\N{MINUS SIGN}", "-")) for text in numbers(cell)][:4]
        assert found == pytest.approx([round(value, decimals) for value in expected])
    scores = pd.read_csv(plain.parent / "scores.csv")
    assert {"dice", "label", "summary", "prediction"} <= set(scores)
    assert len(pd.read_csv(plain.parent / "runs.csv")) == 12


def test_what_is_not_finished_stands_before_any_result(plain: Path) -> None:
    html = plain.read_text()
    order = [html.index(text) for text in ("interim result", "CUDA out of memory", "<h2")]
    assert order == sorted(order)
    assert f"{ARMS[1]} has 36 of 48 predictions" in html


def test_few_cases_are_named(tmp_path: Path) -> None:
    html = write_report(make_results(tmp_path, cases=4, images=False), tmp_path).read_text()
    assert "only 4 cases to compare; intervals from so few are rough" in html


def test_differences_come_with_intervals_and_what_these_cover(plain: Path) -> None:
    html = plain.read_text()
    assert "count both cases and trainings as samples" in html
    table = next(table for table in Reader(html).tables if "Dice ↑" in str(table[0]))
    verdicts = table[0].index("verdict ")
    for row in table[2:]:
        cells = [row[i] for i in (1, 3, 4, 5)]
        assert all(re.search(r"\d \[.*\]\s+p [<=]", cell) for cell in cells)
        assert re.match("better|worse|equivalent|undecided", row[verdicts])


@pytest.mark.parametrize("folds", [1, 2])
def test_one_training_has_no_bold_and_one_sentence_that_says_why(
    tmp_path: Path, folds: int
) -> None:
    results = make_results(tmp_path, folds=folds, seeds=1, images=False)
    html = write_report(results, tmp_path).read_text()
    text = (tmp_path / "report.md").read_text()
    once = folds == 1
    assert ("luck cannot be told from its merit" in html) == once
    table = text[text.index("Dice ↑") :].partition("\n\n")[0]
    assert ("p = " in table or "p < " in table) != once
    assert ("one training" in table) == once
    assert not once or "**" not in table
    assert not once or not re.search(r'<small class="(better|worse|equivalent)', html)


def test_several_data_sets_share_a_page_with_ranks_over_them(tmp_path: Path) -> None:
    parts = [
        replace(make_results(tmp_path, images=False, cases=cases), title=f"Dataset{i:03d}_Part")
        for i, cases in enumerate((12, 16), 1)
    ]
    page = write_report(parts, tmp_path / "all")
    html, text = page.read_text(), (tmp_path / "all" / "report.md").read_text()
    assert {path.name for path in page.parent.iterdir()} == {
        *("index.html", "report.md", "Dataset001_Part", "Dataset002_Part")
    }
    for part in parts:
        own = write_report(part, tmp_path / part.title)
        answer = next(t for t in Reader(own.read_text()).tables if "verdict" in str(t[0]))
        assert answer in Reader(html).tables  # the same numbers as alone
        assert f"## {part.title}: 3d_fullres" in text
        assert {path.name for path in (page.parent / part.title).iterdir()} == FILES - {
            *("index.html", "report.md")
        }
    assert "Ranks averaged over 2 data sets (held-out cases)" in text
    values = pd.concat(samples(each.scores, "dice").assign(dataset=each.title) for each in parts)
    best = ranks(values).iloc[0]
    table = text[text.index("Ranks averaged") :]
    assert table.index(f"| {best['arm']}") < min(
        table.index(f"| {arm}") for arm in ARMS if arm != best["arm"]
    )
    with pytest.raises(UserError, match="Dataset001_Part twice"):
        write_report([parts[0], parts[0]], tmp_path / "twice")
    assert not (tmp_path / "twice").exists()


def test_everything_needed_to_repeat_it_is_there(plain: Path) -> None:
    html = plain.read_text()
    for text in ("nnUNetv2_predict -i x", "Dataset999_Synthetic", "2 cores", "strength"):
        assert text in html
    benchmark = {"dataset": "Dataset999_Synthetic", "folds": [0, 1], "seeds": 2}
    assert escape(json.dumps(benchmark, indent=2)) in html


def test_images_that_must_not_be_shown_are_not(tmp_path: Path) -> None:
    results = make_results(tmp_path, cases=4)
    page = write_report(without_images(results), tmp_path / "report", tmp_path)
    assert "data:image" not in page.read_text()
    assert "images/case" not in "".join(path.read_text() for path in page.parent.iterdir())


def test_written_again_it_is_the_same(tmp_path: Path) -> None:
    results = make_results(tmp_path, cases=6)
    pages = [write_report(results, tmp_path / name, tmp_path).read_bytes() for name in "ab"]
    assert pages[0] == pages[1]


# ------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def browser() -> Callable[..., str]:
    """Run Chromium on a file, return what it prints."""
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(names)} is installed")

    def run(file: Path, *options: str) -> str:
        profile = file.parent / "profile"
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += ["--disable-background-networking", "--disable-component-update"]
        command += ["--disable-sync", f"--user-data-dir={profile}", *options, file.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        shutil.rmtree(profile, ignore_errors=True)
        return done.stdout

    return run


PROBE = """
<iframe id="page" style="width:{width}px;height:800px;border:0"></iframe>
<script>
const page = document.getElementById("page");
page.onload = () => {{
  const inner = page.contentDocument, root = inner.documentElement;
  const beyond = [...inner.body.querySelectorAll("*")].filter(
    each => each.getBoundingClientRect().right > {width} + 1 && !each.closest(".scroll, pre, svg"));
  const loaded = page.contentWindow.performance.getEntriesByType("resource").map(e => e.name);
  const pictures = [...inner.images];
  document.body.textContent = "PROBE" + JSON.stringify({{
    width: root.scrollWidth,
    height: root.scrollHeight,
    beyond: beyond.map(each => each.outerHTML.slice(0, 120)),
    loaded: loaded.filter(name => !name.startsWith("data:")),
    pictures: pictures.length,
    broken: pictures.filter(each => !each.naturalWidth).length,
  }}) + "END";
}};
page.srcdoc = atob("{page}");
</script>
"""


def probe(browser: Callable[..., str], page: Path, folder: Path, width: int) -> dict[str, Any]:
    """What the browser makes of a page in a window of this width."""
    wrapper = folder / "wrapper.html"
    ascii_page = page.read_text(encoding="utf-8").encode("ascii", "xmlcharrefreplace")
    encoded = base64.b64encode(ascii_page).decode()
    wrapper.write_text(f"<!DOCTYPE html><body>{PROBE.format(width=width, page=encoded)}</body>")
    printed = browser(wrapper, "--dump-dom", "--virtual-time-budget=20000")
    found = re.search(r"PROBE(\{.*\})END", printed)
    assert found, printed[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("kind", [SEEN, "odd names", "twelve arms"])
def test_page_fits_the_screen_and_loads_nothing(
    browser: Callable[..., str], tmp_path: Path, kind: str, width: int
) -> None:
    options, change = CASES[kind]
    results = change(make_results(tmp_path, **({"cases": 6, "images": False} | options)))
    seen = probe(browser, write_report(results, tmp_path), tmp_path, width)
    assert seen["width"] <= width
    assert seen["beyond"] == []
    assert seen["loaded"] == []
    assert (seen["pictures"] > 0) == (kind == SEEN)
    assert seen["broken"] == 0


def test_page_opens_from_disk(browser: Callable[..., str], plain: Path) -> None:
    printed = browser(plain, "--dump-dom")
    assert printed.count("<svg") == plain.read_text().count("<svg") > 5
    assert "Reproduction</h2>" in printed


def test_page_prints(browser: Callable[..., str], plain: Path, tmp_path: Path) -> None:
    browser(plain, "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'report.pdf'}")
    printed = (tmp_path / "report.pdf").read_bytes()
    assert 4 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 12
