"""Concept figures of the course, one idea each: `python notebooks/concepts.py` writes images/concept_NAME.svg.

Plain SVG, drawn here so that a figure can be changed with its text. Each follows the light or dark setting; colours
are those of `corsd_lib.figures`, told apart by all common kinds of colour vision, and no meaning rests on colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

FOLDER = Path(__file__).resolve().parent / "images"
Point = tuple[float, float]

STYLE = """
  .page { fill: #ffffff; stroke: #d3d9e0; }
  text { fill: #1f2933; }
  .soft { fill: #52606d; font-size: 13px; }
  .bold { font-weight: 600; }
  .blue { fill: #0072b2; stroke: #0072b2; } .red { fill: #d55e00; stroke: #d55e00; }
  .green { fill: #009e73; stroke: #009e73; } .grey { fill: #9aa5b1; stroke: #9aa5b1; }
  .on { fill: #ffffff; stroke: none; font-weight: 600; }
  text.blue, text.red, text.green { stroke: none; }
  .box { fill: #f3f6f9; stroke: #9aa5b1; }
  .blue-box { fill: #e3f1fa; stroke: #0072b2; } .red-box { fill: #fdeee2; stroke: #d55e00; }
  .line { fill: none; stroke: #52606d; stroke-width: 1.8; }
  .blue-line { fill: none; stroke: #0072b2; stroke-width: 2.2; }
  .red-line { fill: none; stroke: #d55e00; stroke-width: 2.2; }
  .green-line { fill: none; stroke: #009e73; stroke-width: 2.2; }
  .dashed { stroke-dasharray: 6 5; }
  .tip { fill: #52606d; } .blue-tip { fill: #0072b2; } .red-tip { fill: #d55e00; } .green-tip { fill: #009e73; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #161b22; stroke: #3d444d; }
    text { fill: #e6edf3; }
    .soft { fill: #aab4bf; }
    .blue { fill: #56b4e9; stroke: #56b4e9; } .red { fill: #f0883e; stroke: #f0883e; }
    .green { fill: #3cc9a0; stroke: #3cc9a0; } .grey { fill: #6e7681; stroke: #6e7681; }
    .on { fill: #161b22; }
    .box { fill: #21262d; stroke: #6e7681; }
    .blue-box { fill: #10293b; stroke: #56b4e9; } .red-box { fill: #36210f; stroke: #f0883e; }
    .line { stroke: #aab4bf; }
    .blue-line { stroke: #56b4e9; } .red-line { stroke: #f0883e; } .green-line { stroke: #3cc9a0; }
    .tip { fill: #aab4bf; } .blue-tip { fill: #56b4e9; } .red-tip { fill: #f0883e; } .green-tip { fill: #3cc9a0; }
  }
"""
TIPS = ("", "blue-", "red-", "green-")


class Drawing:
    """SVG elements in the order in which they are drawn; lengths in pixels, y downwards."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def rect(self, x: float, y: float, w: float, h: float, look: str = "box", radius: float = 6) -> None:
        self.parts.append(f'<rect class="{look}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}"/>')

    def dot(self, x: float, y: float, look: str = "blue", radius: float = 6) -> None:
        self.parts.append(f'<circle class="{look}" cx="{x:g}" cy="{y:g}" r="{radius:g}"/>')

    def square(self, x: float, y: float, look: str = "red", half: float = 6) -> None:
        self.rect(x - half, y - half, 2 * half, 2 * half, look, 0)

    def triangle(self, x: float, y: float, look: str = "green", half: float = 7) -> None:
        self.parts.append(f'<path class="{look}" d="M{x:g} {y - half:g} l{half:g} {1.8 * half:g} h{-2 * half:g} z"/>')

    def text(self, x: float, y: float, words: str, look: str = "", anchor: str = "middle") -> None:
        style = f' class="{look}"' if look else ""
        self.parts.append(f'<text{style} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(words)}</text>')

    def lines(self, x: float, y: float, words: Iterable[str], look: str = "", anchor: str = "middle", step: float = 19) -> None:
        for row, line in enumerate(words):
            self.text(x, y + row * step, line, look, anchor)

    def path(self, d: str, look: str = "line", arrow: bool = False) -> None:
        colour = look.split()[0].removesuffix("line")
        tip = f' marker-end="url(#{colour}tip)"' if arrow else ""
        self.parts.append(f'<path class="{look}" d="{d}"{tip}/>')

    def arrow(self, start: Point, end: Point, look: str = "line") -> None:
        self.path(f"M{start[0]:g} {start[1]:g} L{end[0]:g} {end[1]:g}", look, arrow=True)

    def line(self, start: Point, end: Point, look: str = "line") -> None:
        self.path(f"M{start[0]:g} {start[1]:g} L{end[0]:g} {end[1]:g}", look)

    def box(self, x: float, y: float, w: float, h: float, words: str | Sequence[str], look: str = "box") -> None:
        """A rectangle with one or more lines of text in its middle."""
        self.rect(x, y, w, h, look)
        rows = [words] if isinstance(words, str) else list(words)
        on = "on" if look in ("blue", "red", "green") else ""
        self.lines(x + w / 2, y + h / 2 + 5 - 9.5 * (len(rows) - 1), rows, on)

    def bars(self, x: float, base: float, heights: Sequence[float], looks: Sequence[str], names: Sequence[str]) -> None:
        """Columns 22 wide on a line, `heights` in pixels, a name under each."""
        for i, (height, look, name) in enumerate(zip(heights, looks, names, strict=True)):
            self.rect(x + 28 * i, base - height, 22, height, look, 1)
            self.text(x + 28 * i + 11, base + 17, name, "soft")
        self.line((x - 6, base), (x + 28 * len(heights), base))

    def svg(self) -> str:
        tips = "".join(
            f'<marker id="{c}tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path class="{c}tip" d="M0 0 10 5 0 10z"/></marker>'
            for c in TIPS
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            'role="img" font-family="system-ui, -apple-system, \'Segoe UI\', Roboto, sans-serif" font-size="15">'
        )
        page = f'<rect class="page" x="1" y="1" width="{self.width - 2}" height="{self.height - 2}" rx="10"/>'
        body = "\n".join(self.parts)
        parts = (head, f"<title>{escape(self.title)}</title>", f"<style>{STYLE}</style>", f"<defs>{tips}</defs>", page, body)
        return "\n".join((*parts, "</svg>\n"))


def digit(d: Drawing, x: float, y: float, name: str) -> None:
    """A small tile that stands for an image of the digit `name`."""
    d.box(x, y, 34, 34, name, "blue" if name == "3" else "red")


def exits() -> Drawing:
    """Exits of a network, and the cost of leaving at each of them."""
    d = Drawing(860, 300, "Three stages with an exit each; leaving later costs more, and passed exits cost extra")
    for k in range(3):
        x = 110 + 160 * k
        d.box(x, 40, 110, 50, f"stage {k + 1}", "blue")
        d.arrow((x - (30 if k == 0 else 48), 65), (x - 2, 65))
        d.arrow((x + 55, 90), (x + 55, 128))
        d.box(x, 130, 110, 44, f"exit {k + 1}", "blue-box")
        d.lines(x + 55, 196, ("averages and", "classifies"), "soft", step=16)
    d.text(34, 70, "image", "", "start")
    d.text(720, 34, "cost of one image", "bold")
    for k, (stages, passed) in enumerate(((28, 8), (70, 16), (110, 24))):
        y = 62 + 60 * k
        d.text(600, y + 20, f"exit {k + 1}", "soft")
        d.rect(630, y, stages, 30, "blue", 1)
        d.rect(630 + stages, y, passed, 30, "red", 1)
    d.line((740, 46), (740, 226), "line dashed")
    d.text(740, 246, "plain network", "soft")
    d.rect(560, 266, 14, 14, "blue", 1)
    d.text(580, 278, "stages", "soft", "start")
    d.rect(650, 266, 14, 14, "red", 1)
    d.text(670, 278, "exits on the way", "soft", "start")
    return d


def teaching() -> Drawing:
    """Who teaches whom, and where the gradient stops."""
    d = Drawing(860, 250, "The deepest exit is the target of the shallow exits; the gradient stops at the target")
    for k in range(3):
        x = 60 + 260 * k
        d.box(x, 150, 150, 46, f"exit {k + 1}", "blue" if k == 2 else "blue-box")
        d.text(x + 75, 220, "teacher: the deepest exit" if k == 2 else "student", "soft")
    for x, top in ((135, 36), (395, 84)):
        start = 680 if x == 135 else 640
        d.path(f"M{start} 148 C{start} {top} {x + 20} {top} {x + 20} 146", "red-line", arrow=True)
        d.path(f"M{x - 20} 150 v-34", "green-line", arrow=True)
        d.text(x - 28, 108, "gradient", "green", "end" if x > 300 else "middle")
    d.line((628, 124), (692, 124), "line")
    d.line((628, 130), (692, 130), "line")
    d.text(704, 132, "sg: stop-gradient", "", "start")
    d.text(440, 46, "target: probabilities, embeddings or relations", "red")
    return d


def temperature() -> Drawing:
    """Softmax of one set of logits at three temperatures."""
    logits, names = (6.0, 3.0, 1.0, 0.0), ("8", "3", "9", "1")
    d = Drawing(860, 240, "A higher temperature flattens the probabilities of the teacher")
    for place, t in enumerate((1, 3, 10)):
        powers = [math.exp(z / t) for z in logits]
        shares = [p / sum(powers) for p in powers]
        x = 90 + 260 * place
        d.bars(x, 186, [130 * s for s in shares], ["blue", "red", "grey", "grey"], names)
        for i, share in enumerate(shares):
            d.text(x + 28 * i + 11, 180 - 130 * share, f"{100 * share:.0f}", "soft")
        d.text(x + 53, 34, f"T = {t}", "bold")
        d.text(x + 53, 226, ("the largest dominates", "the second is visible", "nearly uniform")[place], "soft")
    return d


def pair() -> Drawing:
    """Two images, one relation."""
    d = Drawing(860, 270, "Two embeddings become one relation embedding, from which a score and class logits are read")
    for row, (name, index, matrix) in enumerate((("3", "i", "U"), ("8", "j", "V"))):
        y = 50 + 110 * row
        digit(d, 28, y + 4, name)
        d.arrow((66, y + 21), (96, y + 21))
        d.box(98, y, 120, 42, ("same network",), "box")
        d.arrow((218, y + 21), (258, y + 21))
        d.box(260, y, 54, 42, f"e_{index}", "blue-box")
        d.arrow((314, y + 21), (352, y + 21))
        d.box(354, y, 60, 42, f"{matrix} e_{index}", "blue-box")
    d.arrow((414, 71), (462, 112))
    d.arrow((414, 181), (462, 140))
    d.box(464, 100, 92, 52, ("add, ReLU"), "box")
    d.arrow((556, 126), (592, 126))
    d.box(594, 100, 58, 52, "h_ij", "red-box")
    d.arrow((652, 116), (702, 82))
    d.arrow((652, 136), (702, 172))
    d.box(704, 54, 130, 46, ("score r_ij",), "red")
    d.text(769, 120, "0 to 1: same class?", "soft")
    d.box(704, 154, 130, 46, ("logits q_ij",), "red")
    d.text(769, 220, "which classes?", "soft")
    d.text(430, 250, "U and V differ, so r_ij and r_ji may differ, too", "soft")
    return d


def margin() -> Drawing:
    """The loss of a triplet by the place of its two scores."""
    d = Drawing(860, 250, "A triplet costs nothing when the score of the same class is above the other by the margin")
    cases = (
        ("wrong order", 0.35, 0.60, 0.3),
        ("right order, too close", 0.65, 0.50, 0.3),
        ("far enough apart", 0.85, 0.25, 0.3),
    )
    for place, (name, same, other, m) in enumerate(cases):
        x, w, y = 50 + 275 * place, 210, 120
        d.line((x, y), (x + w, y))
        for value in (0, 1):
            d.line((x + w * value, y - 5), (x + w * value, y + 5))
            d.text(x + w * value, y + 24, f"{value}", "soft")
        d.dot(x + w * same, y, "blue", 7)
        d.text(x + w * same, y - 16, "r_ij", "blue")
        d.square(x + w * other, y, "red", 6)
        d.text(x + w * other, y - 16, "r_ik", "red")
        missing = max(0.0, m - same + other)
        if missing:
            d.path(f"M{x + w * same:g} {y + 40} h{w * missing:g}", "green-line")
        d.text(x + w / 2, 34, name, "bold")
        d.text(x + w / 2, y + 66, f"loss {missing:.2f}", "green" if missing else "soft")
    d.text(
        430, 226, "round: pair of one class (i, j).  square: pair of two classes (i, k).  green: the loss, margin 0.3", "soft"
    )
    return d


def rkd() -> Drawing:
    """What RKD keeps: ratios of distances, and angles."""
    d = Drawing(860, 280, "RKD compares ratios of distances and angles, so size and rotation do not count")
    teacher = ((0.0, 0.0), (120.0, -20.0), (40.0, -110.0))

    def drawn(x: float, y: float, scale: float, turn: float, moved: float, name: str, note: str) -> None:
        c, s = math.cos(turn), math.sin(turn)
        points = [(x + scale * (c * px - s * py), y + scale * (s * px + c * py)) for px, py in teacher]
        points[2] = (points[2][0] + moved, points[2][1] + 0.6 * moved)
        for a, b in ((0, 1), (1, 2), (0, 2)):
            d.line(points[a], points[b], "blue-line")
        for label, (px, py) in zip("ijk", points, strict=True):
            d.dot(px, py, "blue", 5)
            d.text(px + (14 if label == "j" else -14), py + 5, label)
        d.text(x + 50, 34, name, "bold")
        d.text(x + 50, 256, note, "soft")

    drawn(60, 200, 1.0, 0.0, 0, "teacher", "distances and angles of a batch")
    drawn(325, 190, 0.6, 0.0, 0, "smaller", "no loss: d is divided by its mean")
    drawn(540, 190, 1.0, -0.5, 0, "rotated", "no loss")
    drawn(720, 200, 1.0, 0.0, 46, "k moved", "loss")
    d.path("M92 195 A32 32 0 0 0 71 170", "red-line")
    d.text(150, 216, "angle at i", "red", "start")
    return d


def half() -> Drawing:
    """The labels of pairs, right and with one softmax too many."""
    d = Drawing(860, 250, "One class, two classes half and half, and what a needless softmax makes of the latter")
    names = [str(c) for c in range(10)]
    inter = [0.5 if c in (3, 8) else 0.0 for c in range(10)]
    powers = [math.exp(v) for v in inter]
    labels = (
        ("pair (3, 3)", [1.0 if c == 3 else 0.0 for c in range(10)], "all weight on class 3"),
        ("pair (3, 8)", inter, "one half on each"),
        ("pair (3, 8), after a softmax", [p / sum(powers) for p in powers], "15 % and 9 %: nearly uniform"),
    )
    for place, (title, shares, note) in enumerate(labels):
        x = 34 + 275 * place
        for c, share in enumerate(shares):
            look = {3: "blue", 8: "red"}.get(c, "grey")
            d.rect(x + 24 * c, 180 - 110 * share, 18, 110 * share, look, 1)
            d.text(x + 24 * c + 9, 197, names[c], "soft")
        d.line((x - 5, 180), (x + 240, 180))
        d.text(x + 118, 34, title, "bold")
        d.text(x + 118, 226, note, "soft")
    return d


FIGURES: dict[str, Callable[[], Drawing]] = {f.__name__: f for f in (exits, teaching, temperature, pair, margin, rkd, half)}


def path_of(name: str) -> Path:
    return FOLDER / f"concept_{name}.svg"


def out_of_step() -> list[Path]:
    """Figures whose file is not what this program draws."""
    return [
        path
        for name, draw in FIGURES.items()
        if not (path := path_of(name)).is_file() or path.read_text(encoding="utf-8") != draw().svg()
    ]


def write() -> None:
    for name, draw in FIGURES.items():
        path_of(name).write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    write()
