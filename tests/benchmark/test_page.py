"""How tables, plots and paragraphs are written, as Markdown and as HTML."""

import re
from html import unescape

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from nnunet_ext.benchmark.page import Cell, Figure, Table, Writer, fence, line

ODD = (
    "<b>bold</b>",
    "a&b|c",
    "a &amp; b",
    "*stars* and _lines_, snake_case",
    "`code`",
    r"back\\slash",
    "[link](x)",
    "[a]: b",
    "$x$ ~y~",
    "{{ jinja }}",
)
LINES = ("# no heading", "- no list", "+0.1", "1. no list", "> no quotation", "=====")
MARKDOWN = Writer(html=False, colours={"arm": "#123456"}, baselines=["base"])
HTML = Writer(html=True, colours={"arm": "#123456"}, baselines=["base"])


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(markdown)


def words(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html)).strip()


def cells(html: str) -> list[str]:
    return [words(cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", html, re.DOTALL)]


@pytest.mark.parametrize("text", ODD)
def test_names_are_shown_as_they_are(text: str) -> None:
    assert words(rendered(MARKDOWN.show([text]))) == text
    frame = pd.DataFrame({"group": [text], text: [Cell(text, (text,))], "n": ["1"]})
    table = Table(text, frame, group="group", note=text)
    for writer, cell in ((MARKDOWN, f"{text} ({text})"), (HTML, f"{text}{text}")):
        html = rendered(writer.show([table]))
        assert cells(html) == [text, "n", f"group: {text}", "", cell, "1"]
        paragraphs = re.findall("<p>(.*?)</p>", html)
        assert [words(paragraph) for paragraph in paragraphs] == [text, text]


@pytest.mark.parametrize("text", LINES)
def test_lines_begin_no_block_in_markdown(text: str) -> None:
    html = rendered(line(text))
    assert html == f"<p>{html[3:-5]}</p>\n"
    assert words(html) == text


def test_markdown_keeps_listings_whole() -> None:
    text = "a\n```\nb\n````\n  c"
    assert words(rendered(fence(text))) == text


def test_cell_says_in_one_line_of_markdown_what_it_says_in_html() -> None:
    frame = pd.DataFrame({"Dice": [Cell("0.5", ("+0.1 [0, 1]", "p = 0.1"), "better"), np.nan]})
    assert "| 0.5 (**+0.1 [0, 1]**; p = 0.1) |" in MARKDOWN.show([Table("", frame)])
    assert '0.5</b><small class="better">+0.1 [0, 1]</small>' in HTML.show([Table("", frame)])
    assert cells(rendered(MARKDOWN.show([Table("", frame)])))[-1] == "\N{EN DASH}"


@pytest.mark.parametrize("tone", ["equivalent", "undecided", "one training"])
def test_only_better_and_worse_are_bold(tone: str) -> None:
    frame = pd.DataFrame({"Dice": [Cell("0.5", ("+0.1",), tone)]})
    assert "| 0.5 (+0.1) |" in MARKDOWN.show([Table("", frame)])


def test_arms_have_their_colour_and_baselines_their_mark() -> None:
    frame = pd.DataFrame({"arm": ["base", "arm"], "trainer": ["arm", "base"]})
    assert "| base (baseline) | arm |" in MARKDOWN.show([Table("", frame)])
    html = HTML.show([Table("", frame)])
    assert html.count("background:#123456") == 1
    assert html.count("baseline") == 1


def test_plots_stand_in_html_and_their_captions_in_both() -> None:
    figure = Figure(lambda: "<svg>\n\n</svg>", "what & why")
    assert "<svg>\n</svg>" in rendered(HTML.show([figure]))
    assert "what &amp; why" in HTML.show([figure])
    assert "svg" not in MARKDOWN.show([figure])
    assert "what & why" in MARKDOWN.show([figure])
