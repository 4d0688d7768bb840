"""Draw the idea of each method: ``python -m docs.schemes`` writes ``docs/schemes/METHOD.svg``.

Boxes are what is computed, arrows what flows; dashed is what only training has.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

FOLDER = Path(__file__).parent / "schemes"
WIDTH, HEIGHT = 1.7, 0.72
"""Of a box, in units of the grid."""

DATA, NETWORK, LOSS, OURS = "#eeeeee", "#cfe8e5", "#f7dcc4", "#d9d4f0"
"""Images and labels, stock networks, losses, and what the method adds."""

STYLE = {"svg.fonttype": "none", "svg.hashsalt": "nnunet_ext", "font.family": "sans-serif"}


class Scheme:
    """A picture on a grid whose rows count from the top."""

    def __init__(self, columns: int, rows: int) -> None:
        self.figure = Figure(figsize=(2.15 * columns, 1.15 * rows))
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(-1.05, 2.1 * columns - 1.05), ylim=(0.6 - rows, 0.6))
        self.axes.axis("off")

    def box(self, column: float, row: float, text: str, colour: str, dashed: bool = False) -> Any:
        """Draw a box; its place is what :meth:`arrow` takes."""
        x, y = 2.1 * column, -row
        self.axes.add_patch(
            FancyBboxPatch(
                (x - WIDTH / 2, y - HEIGHT / 2),
                WIDTH,
                HEIGHT,
                boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=colour,
                edgecolor="#444444",
                linestyle="--" if dashed else "-",
            )
        )
        self.axes.text(x, y, text, ha="center", va="center", fontsize=9.5)
        return x, y

    def arrows(self, *pairs: tuple[Any, Any], dashed: bool = False) -> None:
        """Draw several alike, each from one box to another."""
        for start, end in pairs:
            self.arrow(start, end, dashed=dashed)

    def arrow(self, start: Any, end: Any, dashed: bool = False) -> None:
        """Draw an arrow from the border of one box to that of another."""
        (x0, y0), (x1, y1) = start, end
        across = abs(x1 - x0) > 0.5
        dx, dy = (WIDTH / 2, 0.0) if across else (0.0, HEIGHT / 2)
        sign = (1 if x1 > x0 else -1) if across else (1 if y1 > y0 else -1)
        begin, tip = (x0 + sign * dx, y0 + sign * dy), (x1 - sign * dx, y1 - sign * dy)
        style = {"arrowstyle": "-|>", "color": "#444444", "linestyle": "--" if dashed else "-"}
        self.axes.annotate("", tip, begin, arrowprops=style)


def catenorm() -> Scheme:
    """Two passes; the first one's answer tells the second one's normalisation what lies where."""
    s = Scheme(5, 2)
    image = s.box(0, 0, "image", DATA)
    first = s.box(1, 0, "U-Net,\nfirst pass", NETWORK)
    prior = s.box(2, 0, "class\nprobabilities", OURS)
    second = s.box(3, 0, "U-Net, second pass:\nnormalised by class", OURS)
    loss_1 = s.box(1, 1, "loss", LOSS, dashed=True)
    loss_2 = s.box(3, 1, "loss", LOSS, dashed=True)
    answer = s.box(4, 0, "answer", DATA)
    s.arrows((image, first), (first, prior), (prior, second), (second, answer))
    s.arrows((first, loss_1), (second, loss_2), dashed=True)
    s.axes.text(4.2, -1.0, "both passes share their\nconvolutions; no gradient\nthrough the "
                "probabilities", ha="center", va="center", fontsize=8, color="#444444")  # fmt: skip
    return s


def condseg() -> Scheme:
    """The encoder learns from two views, then a decoder is guided by object and background."""
    s = Scheme(5, 2)
    image = s.box(0, 0, "image", DATA)
    strong = s.box(0, 1, "its view with\nother contrast", OURS, dashed=True)
    encoder = s.box(1, 0, "encoder", NETWORK)
    agree = s.box(1, 1, "phase 1: right,\nand alike", LOSS, dashed=True)
    parts = s.box(2, 0, "object, background,\nuncertain", OURS)
    attention = s.box(3, 0, "attention guided\nby both", OURS)
    decoder = s.box(3, 1, "phase 2: decoder\nof three sizes", OURS)
    answer = s.box(4, 1, "answer", DATA)
    s.arrows((image, encoder), (encoder, parts), (parts, attention), (attention, decoder))
    s.arrow(decoder, answer)
    s.arrows((image, strong), (strong, agree), (encoder, agree), dashed=True)
    return s


def ram_dsir() -> Scheme:
    """The same anatomy with low frequencies' amplitudes of another domain: answers must agree."""
    s = Scheme(5, 2)
    image = s.box(0, 0, "image,\ndomain A", DATA)
    other = s.box(0, 1, "image,\ndomain B", DATA, dashed=True)
    mixed = s.box(1, 1, "A with amplitudes\nof A and B", OURS, dashed=True)
    unet = s.box(2, 0, "U-Net", NETWORK)
    again = s.box(2, 1, "the same U-Net", NETWORK, dashed=True)
    agree = s.box(3, 1, "both right,\nand alike", LOSS, dashed=True)
    restored = s.box(4, 1, "if asked for: A\nis restored", LOSS, dashed=True)
    answer = s.box(3, 0, "answer", DATA)
    s.arrows((image, unet), (unet, answer))
    s.arrows(
        (unet, agree),
        (agree, restored),
        (image, mixed),
        (other, mixed),
        (mixed, again),
        (again, agree),
        dashed=True,
    )
    return s


def mind_the_gap() -> Scheme:
    """Labelled images get the looks of the others; critics make features and answers alike."""
    s = Scheme(5, 2)
    labelled = s.box(0, 0, "labelled\nmodality", DATA, dashed=True)
    target = s.box(0, 1, "other modality,\nno labels", DATA)
    translated = s.box(1, 0, "step A: translated\nto its looks", OURS, dashed=True)
    masked = s.box(2, 0.5, "U-Net, looks harder\nwhere they differ", OURS)
    loss = s.box(3, 0, "right where\nlabelled", LOSS, dashed=True)
    critic = s.box(3, 1, "critics cannot tell\nthem apart", LOSS, dashed=True)
    answer = s.box(4, 0.5, "answer", DATA)
    s.arrows((labelled, translated), (translated, masked), dashed=True)
    s.arrow(target, masked)
    s.arrows((masked, loss), (masked, critic), dashed=True)
    s.arrow(masked, answer)
    return s


def topk_sigma() -> Scheme:
    """The loss of each voxel is weighted: out with what contradicts, on with what is hard."""
    s = Scheme(5, 3)
    image = s.box(0, 0, "image", DATA)
    unet = s.box(1, 0, "U-Net", NETWORK)
    answer = s.box(2, 0, "answer", DATA)
    label = s.box(0, 1, "label, perhaps\nwrong", DATA, dashed=True)
    voxels = s.box(1, 1, "loss of\neach voxel", LOSS, dashed=True)
    trimmed = s.box(2, 1, "without the highest\nor what contradicts", OURS, dashed=True)
    record = s.box(1, 2, "record of each case:\nsuspects.csv", OURS, dashed=True)
    hard = s.box(3, 1, "patches of the\nhighest rest", OURS, dashed=True)
    loss = s.box(4, 1, "loss", LOSS, dashed=True)
    s.arrows((image, unet), (unet, answer))
    s.arrows(
        (label, voxels),
        (unet, voxels),
        (voxels, trimmed),
        (trimmed, hard),
        (hard, loss),
        dashed=True,
    )
    s.arrows((voxels, record), (record, trimmed), dashed=True)
    return s


SCHEMES: dict[str, Callable[[], Scheme]] = {
    scheme.__name__: scheme for scheme in (catenorm, condseg, ram_dsir, mind_the_gap, topk_sigma)
}
"""Method -> who draws it."""


def main() -> None:
    """Draw all, the same bytes every time."""
    FOLDER.mkdir(exist_ok=True)
    with rc_context(STYLE):
        for name, draw in SCHEMES.items():
            path = FOLDER / f"{name}.svg"
            draw().figure.savefig(path, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
