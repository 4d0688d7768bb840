"""The blocks of a page, as HTML and as Markdown."""

import re
from html import unescape
from typing import Any

import pytest
from markdown_it import MarkdownIt

from nnunet_ext.benchmark.page import (
    Beside,
    Bullets,
    Cell,
    Facts,
    Folded,
    Gallery,
    Key,
    Listing,
    Page,
    Picture,
    Row,
    Section,
    Table,
    Text,
)

ODD = (
    "<b>bold</b>",
    "a&b|c",
    "a &amp; b",
    "*stars* and _lines_, snake_case",
    "`code`",
    r"back\slash",
    "[link](x)",
    "[a]: b",
    "$x$ ~y~",
    "{{ jinja }}",
)
LINES = ("# no heading", "- no list", "+0.1", "1. no list", "> no quotation", "=====")


def rendered(markdown: str) -> str:
    return MarkdownIt("commonmark").enable("table").render(markdown)


def words(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html)).strip()


def table(**options: Any) -> Table:
    cells = [Cell("arm"), Cell("0.5", ("+0.1 [+0.0, +0.2]", "p = 0.1"), tone="better")]
    return Table("Caption", ["arm", "Dice"], [Row(cells)], **options)


@pytest.mark.parametrize("text", ODD)
def test_markdown_shows_names_as_they_are(text: str) -> None:
    assert words(rendered(Text(text).markdown())) == text
    cells = [Cell(text, (text,)), Cell("1")]
    html = rendered(Table(text, [text, "n"], [Row(cells, group=text)], group_head=text).markdown())
    found = [words(cell) for cell in re.findall(r"<t[hd].*?>(.*?)</t[hd]>", html, re.DOTALL)]
    assert found == [text, text, "n", text, f"{text} ({text})", "1"]


@pytest.mark.parametrize("text", LINES)
def test_lines_begin_no_block_in_markdown(text: str) -> None:
    html = rendered(Text(text).markdown())
    assert html == f"<p>{html[3:-5]}</p>\n"
    assert words(html) == text
    assert words(rendered(Bullets([text]).markdown())) == text


def test_markdown_keeps_listings_whole() -> None:
    text = "a\n```\nb\n````\n  c"
    assert words(rendered(Listing("title", text).markdown())).endswith(text)


def test_cell_says_in_one_line_of_markdown_what_it_says_in_html() -> None:
    cell = Cell("0.5", ("+0.1 [0, 1]", "p = 0.1"), (("0.4", "a%20b/summary.json"),), "better")
    assert cell.markdown() == "0.5 (**+0.1 [0, 1]**; p = 0.1; [0.4](<a%20b/summary.json>))"


def test_tables_are_numbered_wherever_they_stand() -> None:
    tables = [table() for _ in range(4)]
    blocks = [Beside([tables[1], tables[2]]), Folded("more", [tables[3]])]
    Page("title", "kind", [tables[0]], [Section("a", "A", 2, blocks)])
    assert [each.number for each in tables] == [1, 2, 3, 4]


def test_html_and_markdown_hold_all_blocks() -> None:
    blocks = [
        Text("one\n\ntwo", "warning"),
        Bullets(["three"]),
        Facts([("four", "see https://example.org/5")]),
        Listing("six", "seven"),
        Beside([table(group_head="g", note="eight")]),
        Gallery("nine", "#123456", [Picture("", "", "ten", ["eleven"])]),
        Folded("twelve", [Text("thirteen")]),
        Key([("fourteen", "#123456")], "fifteen"),
    ]
    page = Page("title", "kind", [], [Section("a", "section", 2, blocks)], "sixteen")
    html, markdown = page.html(), page.markdown()
    only_html = ("twelve", "fourteen", "fifteen")
    both = ("one", "two", "three", "four", "six", "seven", "eight", "nine", "ten", "eleven")
    for word in (*both, *only_html, "thirteen", "sixteen", "section", "+0.1 [+0.0, +0.2]"):
        assert word in html
        assert (word in markdown) == (word not in only_html)
    assert '<a href="https://example.org/5"' in html
    assert '<a href="#a">section</a>' in html
