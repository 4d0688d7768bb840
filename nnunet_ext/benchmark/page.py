"""How a page is written: Markdown from a template, and HTML from the same Markdown."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader
from markdown_it import MarkdownIt
from markupsafe import Markup

MOST_LETTERS = 24
"""Longer texts in cells may break."""


class Cell(NamedTuple):
    """One cell of a table."""

    text: str
    details: tuple[str, ...] = ()  # what it says below that, smaller
    tone: str = ""  # "better", "worse" or "equivalent" marks the first detail


@dataclass(frozen=True)
class Table:
    """A table of texts and cells, NaN for none; the columns' names are its heads."""

    caption: str
    frame: pd.DataFrame  # a column "arm" is shown with the arm's colour
    words: int = 1  # how many columns, from the left, hold words
    group: str = ""  # column, the first one, whose values head groups of rows
    note: str = ""  # what has to be known to read it


class Figure(NamedTuple):
    """What draws a plot as SVG, and what it shows."""

    draw: Callable[[], str]
    caption: str


Block = Table | Figure | str
"""What a section is made of; text is a paragraph."""


class Writer:
    """Writes a page as GitHub's Markdown or, with pictures and colours, as HTML.

    Args:
        html: Which of them.
        colours: Of arms.
        baselines: Arms that others are compared with.
    """

    def __init__(self, html: bool, colours: Mapping[str, str], baselines: Sequence[str]) -> None:
        self.html, self.colours, self.baselines = html, colours, baselines
        self.environment = Environment(
            loader=PackageLoader("nnunet_ext.benchmark"),
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=plain,
        )
        self.environment.globals |= {"html": html, "colours": colours}
        self.environment.filters |= {"show": self.show, "line": line, "fence": fence}

    def write(self, **content: Any) -> str:
        """The page; ``content`` is what its template names."""
        text = self.environment.get_template("report.md.jinja").render(content)
        text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
        return self._page(text, content["title"]) if self.html else text

    def show(self, blocks: Iterable[Block]) -> Markup:
        """Tables, plots and paragraphs, one below the other."""
        return Markup("\n\n").join(map(self._block, blocks))

    def _block(self, block: Block) -> Markup:
        if isinstance(block, Table):
            return self._table(block)
        if isinstance(block, str):
            return line(block)
        if not self.html:
            return Markup(f"*Figure, in index.html:* {plain(block.caption)}")
        drawn = re.sub(r"\n\s*", "\n", block.draw())  # an empty line would end it
        caption = f"<figcaption>{escape(block.caption)}</figcaption>"
        return Markup(f"<figure>{drawn}{caption}</figure>")

    def _table(self, table: Table) -> Markup:
        frame = table.frame
        groups = frame[table.group] if table.group else [""] * len(frame)
        frame = frame.drop(columns=table.group) if table.group else frame
        rule = [":--" if i < table.words else "--:" for i in range(frame.shape[1])]
        lines, above = [[plain(head) for head in frame], rule], ""
        for group, row in zip(groups, frame.itertuples(index=False), strict=True):
            if group != above:
                lines.append([f"**{plain(f'{table.group}: {group}')}**"] + [""] * (len(rule) - 1))
            above = group
            lines.append([self._cell(value, frame.columns[i]) for i, value in enumerate(row)])
        rows = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        note = f"\n\n*{plain(table.note)}*" if table.note else ""
        return Markup(f"**{plain(table.caption)}**\n\n{rows}{note}")

    def _cell(self, value: Cell | str | float, head: str) -> str:
        if isinstance(value, float):
            return "\N{EN DASH}"
        text, details, tone = value if isinstance(value, Cell) else Cell(value)
        if head == "arm" and value in self.baselines:
            details = ("baseline",)
        small = [plain(detail) for detail in details]
        if self.html:
            lines = "".join(f'<small class="{tone}">{detail}</small>' for detail in small)
            chip = f'<i class="chip" style="background:{self.colours.get(text)}"></i>'
            name = chip + plain(text) if head == "arm" else plain(text)
            return (f"<b>{name}</b>" if len(text) < MOST_LETTERS else name) + lines
        if small and tone in ("better", "worse"):
            small[0] = f"**{small[0]}**"
        return f"{plain(text)} ({'; '.join(small)})" if small else plain(text)

    def _page(self, text: str, title: str) -> str:
        markdown = MarkdownIt("commonmark").enable("table")
        tokens = markdown.parse(text)
        contents = []
        for i, token in enumerate(tokens):
            if token.type == "heading_open" and token.tag != "h1":
                name = "".join(part.content for part in tokens[i + 1].children or ())
                contents.append((f"s{i}", token.tag, name))
                token.attrSet("id", f"s{i}")
        body = markdown.renderer.render(tokens, markdown.options, {})
        body = body.replace("<table>", '<div class="scroll" tabindex="0"><table>')
        body = Markup(body.replace("</table>", "</table></div>"))
        shell = Environment(loader=self.environment.loader, autoescape=True)
        return (
            shell.get_template("page.html.jinja").render(title=title, contents=contents, body=body)
            + "\n"
        )


def plain(value: object) -> str:
    """Text in which Markdown finds nothing to format, in one line."""
    if isinstance(value, Markup):
        return value
    text = re.sub(r"([\\`*|$~])", r"\\\1", " ".join(str(value).split()))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within words they mean nothing
    text = re.sub(r"\[(?=[^\]]*\][(\[:])", r"\\[", text)  # would be a link
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")


def line(text: str) -> Markup:
    """Plain text that stands at the beginning of a line, where more signs mean something."""
    return Markup(re.sub(r"^(\d*)([#>+=.)-])", r"\1\\\2", plain(text)))


def fence(text: str) -> Markup:
    """A fenced block; the fence is longer than any within."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    mark = "`" * max(3, longest + 1)
    return Markup(f"\n{mark}\n{text}\n{mark}\n")
