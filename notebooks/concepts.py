"""Concept figures of the course, one idea each: `python notebooks/concepts.py` writes images/concept_NAME.svg.

Plain SVG, drawn here so that a figure can be changed with its text. Each follows the light or dark setting; colours
are those of `corsd_lib.figures`, told apart by all common kinds of colour vision, and no meaning rests on colour alone.
"""

from __future__ import annotations

import math
import re
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
        low = '<tspan font-size="75%" dy="4">\\1</tspan><tspan dy="-4">\u200b</tspan>'  # an index, and back to the line
        drawn = re.sub(r"_(\w+)", low, escape(words))
        self.parts.append(f'<text{style} x="{x:g}" y="{y:g}" text-anchor="{anchor}">{drawn}</text>')

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
        """Columns 26 wide on a line, `heights` in pixels, a name under each."""
        for i, (height, look, name) in enumerate(zip(heights, looks, names, strict=True)):
            self.rect(x + 38 * i, base - height, 26, height, look, 1)
            self.text(x + 38 * i + 13, base + 17, name, "soft")
        self.line((x - 6, base), (x + 38 * len(heights) - 6, base))

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
        d.arrow((x - (24 if k == 0 else 48), 65), (x - 2, 65))
        d.arrow((x + 55, 90), (x + 55, 128))
        d.box(x, 130, 110, 44, f"exit {k + 1}", "blue-box")
        d.lines(x + 55, 196, ("averages," if k == 2 else "convolves, averages,", "classifies"), "soft", step=16)
    d.text(34, 70, "image", "", "start")
    d.text(720, 30, "cost of one image", "bold")
    plain, left = 170, 610  # pixels of the plain network's cost; shares of it by counting, for the digits network of 02
    for k, (stages, passed) in enumerate(((0.398, 0.042), (0.699, 0.062), (1.0, 0.062))):
        y = 62 + 60 * k
        d.text(580, y + 20, f"exit {k + 1}", "soft")
        d.rect(left, y, plain * stages, 30, "blue", 1)
        d.rect(left + plain * stages, y, plain * passed, 30, "red", 1)
        d.text(left + 1.062 * plain + 8, y + 20, f"{100 * (stages + passed):.0f} %", "", "start")
    d.line((left + plain, 46), (left + plain, 226), "line dashed")
    d.text(left + plain, 246, "plain network", "soft")
    d.rect(560, 266, 14, 14, "blue", 1)
    d.text(580, 278, "stages", "soft", "start")
    d.rect(650, 266, 14, 14, "red", 1)
    d.text(670, 278, "exits on the way", "soft", "start")
    return d


def teaching() -> Drawing:
    """Who teaches whom, and where the gradient stops."""
    d = Drawing(860, 300, "The deepest exit is the target of the shallow exits; the gradient stops at the target")
    for k in range(3):
        x = 84 + 255 * k
        d.box(x, 140, 150, 46, f"exit {k + 1}", "blue" if k == 2 else "blue-box")
        d.box(x, 236, 150, 42, "stage 1" if k == 0 else f"stages 1 to {k + 1}")
        d.arrow((x + 45, 234), (x + 45, 190))
        if k < 2:
            d.arrow((x + 105, 188), (x + 105, 232), "green-line")
            d.text(x + 116, 216, "gradient", "green", "start")
            d.text(x - 8, 168, "student", "soft", "end")
    d.text(752, 168, "teacher", "soft", "start")
    for x, top in ((159, 26), (414, 74)):
        start = 689 if x == 159 else 649
        d.path(f"M{start} 138 C{start} {top} {x + 20} {top} {x + 20} 136", "red-line", arrow=True)
    d.line((637, 114), (701, 114), "line")
    d.line((637, 120), (701, 120), "line")
    d.text(713, 122, "sg: stop-gradient", "", "start")
    d.text(440, 36, "target: probabilities, embeddings or relations", "red")
    return d


def temperature() -> Drawing:
    """Softmax of one set of logits at three temperatures."""
    logits, names = (5.8, 3.0, 1.0, 0.0), ("8", "3", "9", "1")
    d = Drawing(860, 240, "A higher temperature flattens the probabilities of the teacher")
    for place, t in enumerate((1, 3, 10)):
        powers = [math.exp(z / t) for z in logits]
        shares = [p / sum(powers) for p in powers]
        x = 90 + 260 * place
        d.bars(x, 186, [130 * s for s in shares], ["blue", "red", "grey", "grey"], names)
        for i, share in enumerate(shares):
            d.text(x + 38 * i + 13, 180 - 130 * share, f"{100 * share:.0f} %", "soft")
        d.text(x + 70, 34, f"T = {t}", "bold")
        d.text(x + 70, 226, ("the largest dominates", "the second is visible", "flat: little but the order")[place], "soft")
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
    drawn(325, 190, 0.6, 0.0, 0, "smaller", "no loss")
    drawn(540, 190, 1.0, -0.5, 0, "rotated", "no loss")
    drawn(700, 200, 1.0, 0.0, 46, "k moved", "loss")
    d.path("M92 195 A32 32 0 0 0 71 170", "red-line")
    d.text(60, 228, "angle at i", "red", "start")
    return d


HALVES = [0.5 if c in (3, 8) else 0.0 for c in range(10)]  # the label of the pair (3, 8)


def label(d: Drawing, x: float, title: str, shares: Sequence[float], note: str) -> None:
    """A bar chart of the label of a pair over ten digits."""
    for c, share in enumerate(shares):
        look = {3: "blue", 8: "red"}.get(c, "grey")
        d.rect(x + 24 * c, 180 - 110 * share, 18, 110 * share, look, 1)
        d.text(x + 24 * c + 9, 197, f"{c}", "soft")
    d.line((x - 5, 180), (x + 240, 180))
    d.text(x + 118, 34, title, "bold")
    d.text(x + 118, 226, note, "soft")


def half() -> Drawing:
    """The labels of an intra pair and of an inter pair."""
    d = Drawing(860, 250, "The label of a pair: all weight on one class, or one half on each of two")
    label(d, 124, "pair (3, 3)", [1.0 if c == 3 else 0.0 for c in range(10)], "all weight on class 3")
    label(d, 486, "pair (3, 8)", HALVES, "one half on each")
    return d


def needless() -> Drawing:
    """What a needless softmax makes of the label of an inter pair."""
    d = Drawing(860, 250, "The label of a pair of two classes, and what a needless softmax makes of it")
    powers = [math.exp(v) for v in HALVES]
    label(d, 124, "pair (3, 8)", HALVES, "one half on each")
    label(d, 486, "after a softmax", [p / sum(powers) for p in powers], "15 % and 9 %: nearly uniform")
    d.arrow((384, 130), (466, 130))
    return d


def collapse() -> Drawing:
    """Classes before and after neural collapse."""
    d = Drawing(860, 270, "Neural collapse: each class shrinks to its mean, and the means become a simplex")
    marks = (d.dot, d.square, d.triangle)
    looks = ("blue", "red", "green")
    scatter = [(0, 0), (18, -12), (-16, 10), (10, 20), (-20, -14), (26, 6), (-6, -26), (-28, 2)]
    for x, spread, name, note in (
        (140, 1.5, "before training", "within and between are similar"),
        (420, 0.7, "during training", "within shrinks relative to between"),
        (700, 0.0, "full collapse", "NC1 = 0; cosines of the means are -1/(C-1)"),
    ):
        shape = 46 if spread > 1 else 66 if spread else 84
        for c in range(3):
            angle = -math.pi / 2 + 2 * math.pi * c / 3 + (0.5 if spread > 1 else 0.15 if spread else 0)
            cx, cy = x + shape * math.cos(angle), 140 + shape * math.sin(angle)
            if not spread:
                d.line((x, 140), (cx, cy), "line dashed")
            for dx, dy in scatter if spread else ((0, 0),):
                marks[c](cx + spread * dx, cy + spread * dy, looks[c], 4 if spread else 9)
        d.text(x, 34, name, "bold")
        d.text(x, 254, note, "soft")
    return d


def neighbours() -> Drawing:
    """What UMAP keeps and what it does not."""
    d = Drawing(860, 280, "UMAP keeps neighbours; distances between groups and their sizes mean little")
    groups = {
        "blue": [(0, 0), (22, -10), (14, 18), (-14, 12), (34, 12)],
        "red": [(0, 0), (60, -30), (40, 50), (-50, 30), (90, 40)],
        "green": [(0, 0), (20, -16), (24, 12), (-10, 18), (6, -28)],
    }
    edges = [(0, 1), (0, 2), (0, 3), (1, 4), (2, 4)]
    marks = {"blue": d.dot, "red": d.square, "green": d.triangle}

    def layout(centres: dict[str, Point], scales: dict[str, float]) -> None:
        for look, points in groups.items():
            cx, cy = centres[look]
            placed = [(cx + scales[look] * px, cy + scales[look] * py) for px, py in points]
            for a, b in edges:
                d.line(placed[a], placed[b])
            for px, py in placed:
                marks[look](px, py, look, 5)

    layout({"blue": (80, 90), "red": (110, 190), "green": (250, 80)}, {"blue": 1.0, "red": 0.75, "green": 1.0})
    d.arrow((340, 140), (470, 140))
    d.text(405, 126, "UMAP", "bold")
    layout({"blue": (540, 180), "red": (640, 90), "green": (770, 170)}, {"blue": 1.1, "red": 0.42, "green": 1.1})
    d.text(170, 34, "64 dimensions (sketch)", "bold")
    d.text(660, 34, "2 dimensions", "bold")
    d.text(
        430,
        262,
        "kept: the lines between neighbours.  not kept: size of a group, distance and direction between groups",
        "soft",
    )
    return d


def attribution_path() -> Drawing:
    """Integrated gradients: from a baseline to the image."""
    d = Drawing(860, 290, "Integrated gradients add up the gradient along a straight path from a baseline to the image")
    shades = (0.04, 0.25, 0.5, 0.75, 1.0)
    for step, shade in enumerate(shades):
        x = 40 + 84 * step
        d.rect(x, 70, 60, 60, "box")
        d.parts.append(f'<g opacity="{shade}">')
        d.path(f"M{x + 18} {84} h22 l-12 14 a12 10 0 1 1 -10 20", "red-line")
        d.parts.append("</g>")
        d.text(x + 30, 152, f"α = {step / 4:g}", "soft")
        if step:
            d.arrow((x - 22, 100), (x - 3, 100))
    d.text(70, 56, "baseline", "bold")
    d.text(406, 56, "image", "bold")
    d.text(238, 190, "images x(α) on the path", "soft")
    d.line((520, 220), (830, 220))
    d.line((520, 220), (520, 60))
    d.path("M520 204 C600 200 620 150 660 110 S760 86 820 84", "blue-line")
    d.line((520, 204), (820, 204), "line dashed")
    d.path("M828 204 V86", "green-line", arrow=True)
    d.text(814, 150, "sum of all attributions", "green", "end")
    d.text(676, 242, "α from 0 to 1", "soft")
    d.text(676, 40, "score f(x(α))", "bold")
    d.text(430, 274, "complete: the attributions of all pixels add up to f(image) - f(baseline)", "soft")
    return d


def interval() -> Drawing:
    """Why differences are taken seed by seed."""
    d = Drawing(860, 300, "Two methods over five seeds: the difference of the same seed varies less than the accuracies")
    plain, ours = (44.0, 46.2, 42.9, 45.1, 47.0), (45.1, 47.0, 44.1, 46.0, 48.3)
    top = 60

    def y(value: float) -> float:
        return top + (49 - value) * 26

    d.line((70, y(42)), (70, y(49)))
    for value in range(42, 50):
        d.text(60, y(value) + 4, f"{value}", "soft", "end")
    for a, b in zip(plain, ours, strict=True):
        d.line((150, y(a)), (330, y(b)))
        d.dot(150, y(a), "blue")
        d.square(330, y(b), "red")
    d.text(150, 276, "plain", "blue")
    d.text(330, 276, "method", "red")
    d.text(240, 34, "accuracy (%), one line per seed (invented numbers)", "bold")
    gaps = [b - a for a, b in zip(plain, ours, strict=True)]
    mean = sum(gaps) / 5
    half = 2.776 * (sum((g - mean) ** 2 for g in gaps) / 4) ** 0.5 / 5**0.5
    zero = 150

    def x(value: float) -> float:
        return 500 + 150 * value

    d.line((x(-0.4), zero), (x(2.0), zero))
    for value in (0, 1, 2):
        d.line((x(value), zero - 4), (x(value), zero + 4))
        d.text(x(value), zero + 22, f"{value}", "soft")
    d.line((x(0), 76), (x(0), zero), "line dashed")
    for g in gaps:
        d.triangle(x(g), zero - 20, "green", 6)
    d.path(f"M{x(mean - half):g} {zero - 50} H{x(mean + half):g}", "red-line")
    d.dot(x(mean), zero - 50, "red", 6)
    d.text(660, 34, "difference of each seed (points)", "bold")
    d.text(x(mean), zero - 66, "mean and 95 % interval", "red")
    d.text(660, 206, "triangles: the five differences", "soft")
    d.text(660, 228, "the interval excludes 0", "soft")
    return d


def stages() -> Drawing:
    """A network of three stages: the side of the map falls, the number of channels rises."""
    d = Drawing(860, 290, "An image of 24 x 24 pixels passes a stem and three stages; each stage has an exit")
    parts = (
        ("image", 24, 3, "", "box", ""),
        ("stem", 12, 16, "stride 2", "box", ""),
        ("stage 1", 12, 16, "stride 1", "blue-box", "reduction 2"),
        ("stage 2", 6, 32, "stride 2", "blue-box", "reduction 4"),
        ("stage 3", 3, 64, "stride 2", "blue-box", "reduction 8"),
    )
    for k, (name, side, channels, stride, look, reduction) in enumerate(parts):
        x, half, depth = 80 + 172 * k, 2.1 * side, 4 + channels / 8
        for shift in (depth, depth / 2, 0):  # a stack of maps, the deeper the more channels
            d.rect(x - half + shift, 100 - half - shift, 2 * half, 2 * half, look, 2)
        d.text(x, 30, name, "bold")
        d.text(x, 180, f"{side} × {side}")
        d.text(x, 200, f"{channels} channels", "soft")
        if stride:
            d.arrow((x - 112, 100), (x - 58, 100))
            d.text(x - 86, 88, stride, "soft")
        if reduction:
            d.text(x, 220, reduction, "blue")
            d.arrow((x, 228), (x, 248), "blue-line")
            d.text(x, 268, f"exit {name[-1]}")
    return d


def verdict() -> Drawing:
    """An interval compared with zero and with the smallest gain that matters."""
    d = Drawing(860, 290, "Four intervals compared with zero and with the smallest useful gain: three verdicts")
    bottom = 236

    def x(value: float) -> float:
        return 190 + 90 * (value + 2)

    d.line((x(-2), bottom), (x(4), bottom))
    for value, name in ((0, "0"), (2, "δ, the smallest gain that matters")):
        d.line((x(value), 44), (x(value), bottom), "line dashed")
        d.text(x(value), bottom + 24, name, "soft")
    d.text(x(-2), bottom + 24, "worse", "soft")
    d.text(x(1), 28, "95 % intervals of a difference, and their verdicts", "bold")
    cases = ((0.3, 2.6, "helps", "green"), (-0.7, 1.5, "no useful gain", "red"), (0.3, 1.6, "no useful gain", "red"))
    for row, (low, high, name, look) in enumerate((*cases, (-0.8, 3.2, "undecided", "blue"))):
        y = 68 + 44 * row
        d.path(f"M{x(low):g} {y} H{x(high):g}", f"{look}-line")
        mark = {"green": d.triangle, "red": d.square, "blue": d.dot}[look]
        mark(x((low + high) / 2), y, look)
        d.text(30, y + 5, name, look, "start")
    return d


def images() -> Drawing:
    """Equal numbers of images for every method."""
    d = Drawing(860, 250, "Methods get the same number of images, so those that use several an anchor get fewer epochs")
    rows = (("plain network", 60, 1, "1 image an anchor, 60 epochs"), ("DLB", 30, 2, "each image twice, 30 epochs"))
    rows = (*rows, ("triplets", 20, 3, "3 images an anchor, 20 epochs"))
    for row, (name, epochs, passes, note) in enumerate(rows):
        y = 60 + 52 * row
        d.text(130, y + 21, name, "", "end")
        for p in range(passes):
            d.rect(150 + 6.6 * epochs * p, y, 6.6 * epochs - 3, 32, ("blue", "red", "green")[p], 2)
        d.text(560, y + 21, note, "soft", "start")
    d.text(348, 36, "images that pass the network", "bold")
    d.line((546, 46), (546, 212), "line dashed")
    d.text(546, 232, "equal for all", "soft")
    return d


def ranks() -> Drawing:
    """Two orders of the same pairs, and how far they agree."""
    d = Drawing(860, 270, "Pairs sorted by attributes and by relation; the fewer lines cross, the higher the rank correlation")
    pairs = ("A, B", "C, D", "B, E", "A, E", "A, D")
    other = (0, 2, 1, 4, 3)
    for place, name in enumerate(pairs):
        y = 66 + 36 * place
        d.text(250, y + 5, name, "", "end")
        d.text(280, y + 5, f"{place + 1}", "blue")
        look = "line" if other[place] == place else "red-line"
        d.line((296, y), (556, 66 + 36 * other[place]), look)
        d.text(572, 66 + 36 * other[place] + 5, f"{other[place] + 1}", "blue")
        d.text(600, 66 + 36 * other[place] + 5, name, "", "start")
    d.text(250, 36, "by attributes: most alike first", "bold")
    d.text(640, 36, "by relation: most related first", "bold")
    d.text(430, 254, "invented ranks of pairs of made-up classes; only the order counts, so the scales may differ", "soft")
    return d


def lift() -> Drawing:
    """Which cells of a class matrix the lift compares."""
    d = Drawing(860, 330, "The lift compares pairs of different classes within superclasses with pairs between them")
    within, between = (0.6, 0.5, 0.4), (0.2, 0.1, 0.3)
    for i in range(6):
        d.text(112, 87 + 40 * i, "ABCDEF"[i], "soft", "end")
        d.text(142 + 44 * i, 54, "ABCDEF"[i], "soft")
        for j in range(6):
            same = i // 2 == j // 2
            value = within[i // 2] if same else between[i // 2 + j // 2 - 1]
            d.rect(122 + 44 * i, 62 + 40 * j, 41, 37, "box" if i == j else "red-box" if same else "blue-box", 2)
            d.text(142 + 44 * i, 86 + 40 * j, "–" if i == j else f"{value:.1f}", "soft" if i == j else "")
    d.text(254, 30, "relation of six made-up classes (invented numbers)", "bold")
    d.text(650, 92, "orange: within a superclass (A with B, ...)", "red")
    d.text(650, 116, f"mean {sum(within) / 3:.1f}", "red")
    d.text(650, 160, "blue: between superclasses", "blue")
    d.text(650, 184, f"mean {sum(between) / 3:.1f}", "blue")
    d.text(650, 228, "grey: a class with itself is left out", "soft")
    d.text(650, 268, f"lift = 0.5 / 0.2 = {0.5 / 0.2:.1f}", "bold")
    return d


def popularity() -> Drawing:
    """A popular class makes bright pairs; what is left without popularity."""
    d = Drawing(860, 320, "A relation is what popularity predicts and a remainder, whose rows and columns have mean zero")
    names, general = ("A", "B", "C", "D"), (0.2, 0.4, 0.2, 0.1)
    rest = ((0.06, -0.06, 0.06, -0.06), (-0.06, 0.12, -0.06, 0), (0.06, -0.06, 0.06, -0.06), (-0.06, 0, -0.06, 0.12))

    def grid(x: float, title: str, value: Callable[[int, int], float], signed: bool = False) -> None:
        d.text(x + 98, 36, title, "bold")
        for i in range(4):
            d.text(x - 8, 99 + 46 * i, names[i], "soft", "end")
            d.text(x + 50 * i + 23, 64, names[i], "soft")
            for j in range(4):
                shade = 5 * abs(value(i, j)) if signed else value(i, j)
                d.parts.append(f'<g opacity="{0.06 + 0.94 * shade:.2f}">')
                d.rect(x + 50 * j, 72 + 46 * i, 47, 43, "red" if value(i, j) > 0 and signed else "blue", 2)
                d.parts.append("</g>")
                said = f"{value(i, j):+.2f}" if signed and value(i, j) else f"{value(i, j):.2f}"
                d.text(x + 50 * j + 23, 98 + 46 * i, said, "on" if shade > 0.7 else "")

    grid(70, "relation R (invented numbers)", lambda i, j: general[i] + general[j] + rest[i][j])
    d.text(290, 168, "=")
    grid(360, "predicted by popularity", lambda i, j: general[i] + general[j])
    d.text(578, 168, "+")
    grid(648, "remainder E", lambda i, j: rest[i][j], signed=True)
    d.text(430, 284, "class A with B has the higher relation, 0.54; A with C has the higher remainder, +0.06", "soft")
    d.text(430, 304, "orange is more than popularity predicts, blue is less; every row and column has mean 0", "soft")
    return d


def glyph(d: Drawing, x: float, y: float, shape: str, look: str) -> None:
    """One of the drawn shapes, about 30 wide, with its middle at (x, y)."""
    if shape == "circle":
        d.dot(x, y, look, 15)
    elif shape == "square":
        d.square(x, y, look, 13)
    elif shape == "triangle":
        d.triangle(x, y + 1, look, 16)
    else:
        d.path(f"M{x - 5:g} {y - 15:g} h10 v10 h10 v10 h-10 v10 h-10 v-10 h-10 v-10 h10 z", look)


def held_out() -> Drawing:
    """Twelve classes of drawn shapes are trained, four are held out."""
    d = Drawing(
        860, 330, "Sixteen classes of drawn shapes: those of three looks are trained, the four blue plain ones are held out"
    )
    looks = (("orange plain", "red"), ("orange striped", "red"), ("blue striped", "blue"), ("blue plain", "blue"))
    d.rect(470, 48, 124, 232, "blue-box")
    for column, (name, look) in enumerate(looks):
        x = 190 + 114 * column
        d.text(x, 36, name, "soft")
        for row, shape in enumerate(("circle", "square", "triangle", "cross")):
            y = 80 + 56 * row
            glyph(d, x, y, shape, look)
            if "striped" in name:
                for step in (-8, 0, 8):
                    d.line((x - 20, y + step), (x + 20, y + step), "line")
            if not column:
                d.text(96, y + 5, shape, "", "end")
    d.text(304, 310, "12 classes: trained", "bold")
    d.text(532, 310, "4 classes: held out", "bold")
    words = (
        "Each shape and each colour",
        "is known from other classes.",
        "",
        "Only the combination is new,",
        "and only the shape tells",
        "the four classes apart.",
    )
    d.lines(620, 110, words, "", "start", 24)
    return d


def retrieval() -> Drawing:
    """A query, the images in order of their score, and three figures computed from the order."""
    d = Drawing(860, 250, "Images in the order of their score: the precision at each rank, and the figures that follow")
    d.text(60, 40, "query", "bold")
    glyph(d, 60, 90, "circle", "blue")
    d.text(430, 40, "the other images, highest score first", "bold")
    hits = (True, False, True, False, False)
    shapes = ("circle", "cross", "circle", "square", "circle")
    for k, (hit, shape) in enumerate(zip(hits, shapes, strict=True)):
        x = 190 + 120 * k
        d.rect(x - 34, 60, 68, 60, "blue-box" if hit or shape == "circle" else "box")
        glyph(d, x, 90, shape, "blue")
        d.text(x, 146, f"rank {k + 1}", "soft")
    for k, precision in ((0, "1/1"), (2, "2/3")):
        d.text(190 + 120 * k, 172, f"P({k + 1}) = {precision}", "blue")
    d.line((490, 54), (490, 180), "line dashed")
    d.text(502, 176, "R = 3: the query's class has 3 other images", "soft", "start")
    for x, words in ((190, "recall@1 = 1"), (380, "R-precision = 2/3"), (640, "MAP@R = (1/1 + 2/3) / 3 = 0.56")):
        d.text(x, 226, words, "bold")
    return d


FIGURES: dict[str, Callable[[], Drawing]] = {
    f.__name__: f
    for f in (
        exits,
        teaching,
        temperature,
        pair,
        margin,
        rkd,
        half,
        needless,
        collapse,
        neighbours,
        attribution_path,
        interval,
        stages,
        verdict,
        images,
        ranks,
        lift,
        popularity,
        held_out,
        retrieval,
    )
}


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
