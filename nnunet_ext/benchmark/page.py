"""What a page is made of, and how it is written as HTML and as Markdown.

Both show the same blocks, so whatever stands in one stands in the other; plots and pictures,
which Markdown cannot hold, are replaced by their captions.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from jinja2 import Environment, PackageLoader

MORE_PICTURES = "(see index.html)"


@dataclass
class Text:
    """Paragraphs, between which stands an empty line.

    Attributes:
        text: Plain text; addresses in it become links.
        tone: "" or "note" (small), "warning" (stands out), "lead" (large).
    """

    kind: ClassVar[str] = "text"
    text: str
    tone: str = ""

    def paragraphs(self) -> list[str]:
        """The paragraphs, without empty ones."""
        return [part.strip() for part in re.split(r"\n\s*\n", self.text) if part.strip()]

    def markdown(self) -> str:
        """The paragraphs; a warning as a quotation."""
        mark = "> " if self.tone == "warning" else ""
        return "\n\n".join(mark + _line(paragraph) for paragraph in self.paragraphs())


@dataclass
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[str]
    tone: str = ""

    def markdown(self) -> str:
        """One line each."""
        return "\n".join(f"- {_line(item)}" for item in self.items)


@dataclass
class Facts:
    """Terms and what is said of each."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str]]

    def markdown(self) -> str:
        """One line each."""
        return "\n".join(f"- **{_plain(term)}**: {_plain(text)}" for term, text in self.facts)


@dataclass
class Listing:
    """Lines of a file or a terminal, folded away at first."""

    kind: ClassVar[str] = "listing"
    title: str
    text: str

    def markdown(self) -> str:
        """A fenced block; the fence is longer than any within."""
        longest = max((len(run) for run in re.findall(r"`+", self.text)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{_line(self.title)}\n\n{fence}\n{self.text}\n{fence}"


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    Attributes:
        text: What it says first.
        details: What it says below that, smaller.
        links: Text and address of what it comes from.
        tone: "better" or "worse" marks the details.
    """

    text: str
    details: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    tone: str = ""

    def markdown(self) -> str:
        """All in one line."""
        mark = "**" if self.tone else ""
        first = [f"{mark}{_plain(self.details[0])}{mark}"] if self.details else []
        rest = [_plain(detail) for detail in self.details[1:]]
        rest += [f"[{_plain(text)}](<{address}>)" for text, address in self.links]
        inner = "; ".join(first + rest)
        return f"{_plain(self.text)} ({inner})" if inner else _plain(self.text)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        cells: The first one names the row.
        colour: Of the arm that the row is about, or "".
        group: Rows of a group follow each other, under the group's name.
    """

    cells: Sequence[Cell]
    colour: str = ""
    group: str = ""


@dataclass
class Table:
    """A table.

    Attributes:
        caption: What it shows.
        heads: Names of the columns.
        rows: The rows.
        words: How many columns, from the left, hold words.
        group_head: What the groups of rows are.
        note: What has to be known to read it.
        number: Set by :class:`Page`.
    """

    kind: ClassVar[str] = "table"
    caption: str
    heads: Sequence[str]
    rows: Sequence[Row]
    words: int = 1
    group_head: str = ""
    note: str = ""
    number: int = 0

    def markdown(self) -> str:
        """A table whose groups are a column of their own."""
        heads = [_plain(head) for head in self.heads]
        lines = [[cell.markdown() for cell in row.cells] for row in self.rows]
        words = self.words
        if self.group_head:
            heads, words = [_plain(self.group_head), *heads], words + 1
            lines = [[_plain(row.group), *line] for row, line in zip(self.rows, lines, strict=True)]
        rule = [":--" if i < words else "--:" for i in range(len(heads))]
        text = "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))
        note = f"\n\n{_line(self.note)}" if self.note else ""
        return f"**Table {self.number}.** {_plain(self.caption)}\n\n{text}{note}"


@dataclass
class Figure:
    """A plot.

    Attributes:
        svg: The plot.
        caption: What it shows.
        number: Set by :class:`Page`.
    """

    kind: ClassVar[str] = "figure"
    svg: str
    caption: str
    number: int = 0

    def markdown(self) -> str:
        """The caption."""
        return f"**Figure {self.number}** {MORE_PICTURES}. {_plain(self.caption)}"


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        image: ``data:`` address of the picture, or "" if there is none.
        labels: The same of what is laid over it.
        title: What it shows.
        details: What else is to say.
    """

    image: str
    labels: str
    title: str
    details: Sequence[str]


@dataclass
class Gallery:
    """Pictures of one arm."""

    kind: ClassVar[str] = "gallery"
    title: str
    colour: str
    pictures: Sequence[Picture]

    def markdown(self) -> str:
        """The captions."""
        lines = [f"{_line(self.title)} {MORE_PICTURES}:", ""]
        lines += [
            f"- {_line(picture.title)}: {_plain('; '.join(picture.details))}"
            for picture in self.pictures
        ]
        return "\n".join(lines)


@dataclass
class Key:
    """What the colours of pictures mean."""

    kind: ClassVar[str] = "key"
    colours: Sequence[tuple[str, str]]
    text: str

    def markdown(self) -> str:
        """Colours mean nothing where there are no pictures."""
        return ""


@dataclass
class Beside:
    """Blocks that stand beside each other where there is room."""

    kind: ClassVar[str] = "beside"
    blocks: "Sequence[Block]"

    def markdown(self) -> str:
        """One after the other."""
        return "\n\n".join(block.markdown() for block in self.blocks)


@dataclass
class Folded:
    """Blocks that are folded away at first, and left out on paper."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: "Sequence[Block]"

    def markdown(self) -> str:
        """One after the other."""
        return "\n\n".join(block.markdown() for block in self.blocks)


Block = Text | Bullets | Facts | Listing | Table | Figure | Gallery | Key | Beside | Folded


@dataclass
class Section:
    """A section of the page.

    Attributes:
        anchor: Where links to it lead.
        title: Its heading.
        level: Of the heading, from 2.
        blocks: What it holds.
    """

    anchor: str
    title: str
    level: int
    blocks: Sequence[Block]

    @property
    def folded(self) -> bool:
        """Whether all that it holds is folded away."""
        return bool(self.blocks) and all(isinstance(block, Folded) for block in self.blocks)


@dataclass
class Page:
    """A page; numbers its tables and figures.

    Attributes:
        title: Its heading.
        overline: What kind of page it is.
        lead: What stands before the first section.
        sections: The rest.
        footer: Last line.
    """

    title: str
    overline: str
    lead: Sequence[Block]
    sections: Sequence[Section]
    footer: str = ""
    _numbers: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        blocks = [*self.lead, *(block for section in self.sections for block in section.blocks)]
        for block in _all(blocks):
            if isinstance(block, Table | Figure):
                block.number = self._numbers[block.kind] = self._numbers.get(block.kind, 0) + 1

    def html(self) -> str:
        """The page as one file that needs no other."""
        environment = Environment(
            loader=PackageLoader("nnunet_ext.benchmark"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("report.html.jinja").render(page=self)

    def markdown(self) -> str:
        """The page as GitHub's Markdown, without pictures."""
        parts = [f"# {_plain(self.title)}", _line(self.overline)]
        parts += [block.markdown() for block in self.lead]
        for section in self.sections:
            parts.append(f"{'#' * section.level} {_plain(section.title)}")
            parts += [block.markdown() for block in section.blocks]
        return "\n\n".join(part for part in [*parts, _line(self.footer)] if part) + "\n"


def _all(blocks: Iterable[Block]) -> Iterator[Block]:
    for block in blocks:
        yield block
        if isinstance(block, Beside | Folded):
            yield from _all(block.blocks)


def _plain(text: str) -> str:
    """Text in which Markdown finds nothing to format, in one line."""
    text = re.sub(r"([\\`*|$~])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within words they mean nothing
    text = re.sub(r"\[(?=[^\]]*\][(\[:])", r"\\[", text)  # would be a link
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;")


def _line(text: str) -> str:
    """Plain text that stands at the beginning of a line, where more signs mean something."""
    return re.sub(r"^(\d*)([#>+=.)-])", r"\1\\\2", _plain(text))
