"""Charts as SVG that takes its colours from the page: drawn by Matplotlib in colours that stand for the page's own."""

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pipeline.statistics import half_interval

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0{place}0a0a" for place in range(1, 8))
"""Seven that people with any colour vision tell apart; dashes and markers tell them apart too."""
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (9, 3)), (0, (3, 1.5)), (0, (7, 2, 1, 2, 1, 2)))
MARKERS = "osD^vPX"
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--rule)"} | {
    colour: f"var(--series-{place})" for place, colour in enumerate(SERIES, 1)
}
SIZE = (4.6, 3.0)
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.7,
}

Numbers = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing with the words that stand for it."""

    title: str
    description: str
    svg: str
    legend: tuple[tuple[int, str], ...]
    """Number of the colour, from 1, and name of each series."""
    lines: bool = False
    """Whether series are told apart by their dashes, not by their markers."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """Something drawn in one colour."""

    name: str
    x: Sequence[Any]
    y: Sequence[float]


def curves_chart(curves: dict[str, list[Numbers]], *, metric: str) -> Chart:
    """Mean over seeds of the metric after every epoch, with its 95 % band. curves: of each row, [epochs] per seed."""
    with _figure("curves") as (axes, finish):
        for place, ofseeds in enumerate(curves.values()):
            length = min(len(curve) for curve in ofseeds)
            together = np.stack([curve[:length] for curve in ofseeds])
            epochs, mean = np.arange(1, length + 1), together.mean(axis=0)
            reach = np.array([half_interval(column.tolist()) or 0.0 for column in together.T])
            axes.plot(epochs, mean, color=SERIES[place], linestyle=DASHES[place], marker="" if length > 1 else "o")
            if len(ofseeds) > 1:
                axes.fill_between(epochs, mean - reach, mean + reach, color=SERIES[place], alpha=0.16, linewidth=0)
        axes.set(xlabel="epoch", ylabel=f"validation {metric} %")
        axes.set_ylim(max(axes.get_ylim()[0], -5), min(axes.get_ylim()[1], 105))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        title, told = "Learning curves", "Mean over seeds on the validation split; the bands are 95 % intervals."
        return _chart(title, told, finish(title, told), curves, lines=True)


def cost_chart(points: Sequence[Series], *, front: Sequence[tuple[float, float]], metric: str) -> Chart:
    """What a training takes against how good it is; a line joins those that nothing cheaper beats."""
    with _figure("cost") as (axes, finish):
        axes.step(*zip(*front, strict=True), where="post", color=MUTED, linewidth=1, linestyle=(0, (3, 2)))
        for place, one in enumerate(points):
            shown = place % len(SERIES)
            axes.plot(one.x, one.y, color=SERIES[shown], marker=MARKERS[shown], linestyle="", markersize=7)
        axes.set(xlabel="seconds of a training, mean over seeds", ylabel=f"test {metric} %")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.margins(0.12)
        title = "Cost against accuracy"
        told = "Left and up is better; the dashed line joins the rows that no cheaper one beats."
        return _chart(title, told, finish(title, told), [one.name for one in points])


def axis_chart(path: str, series: Sequence[Series], *, score: str, number: int) -> Chart:
    """Scores of trials against what an axis was set to; a line joins the means where values repeat."""
    numeric = all(isinstance(x, int | float) for one in series for x in one.x)
    names = list(dict.fromkeys(str(x) for one in series for x in one.x))
    with _figure(f"axis{number}") as (axes, finish):
        for place, one in enumerate(series):
            x = np.array(one.x, float) if numeric else np.array([names.index(str(x)) for x in one.x], float)
            look = {"color": SERIES[place], "marker": MARKERS[place]}
            axes.plot(x, one.y, **look, linestyle="", markersize=4, alpha=0.45, markeredgewidth=0)
            values, places = np.unique(x, return_inverse=True)
            if 1 < len(values) <= len(x) / 2:
                means = np.bincount(places, one.y) / np.bincount(places)
                axes.plot(values, means, **look, linestyle=DASHES[place], markersize=6)
        _scale(axes, [x for one in series for x in one.x] if numeric else None, names)
        axes.set(xlabel=path, ylabel=score)
        title, told = (
            f"Against {path}",
            "Every point is a trial; lines join the means over everything else that varies.",
        )
        return _chart(title, told, finish(title, told), [one.name for one in series])


def _scale(axes: Axes, numbers: Sequence[float] | None, names: Sequence[str]) -> None:
    """Logarithmic where the values ask for it; names where they are no numbers."""
    if numbers is None:
        axes.set_xticks(range(len(names)), [name if len(name) <= 18 else f"{name[:17]}…" for name in names])
        axes.tick_params(axis="x", rotation=20 if len(names) > 3 else 0)
        axes.margins(x=0.15)
    elif min(numbers) > 0 and max(numbers) / min(numbers) >= 20:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _chart(title: str, description: str, svg: str, names: Iterable[str], *, lines: bool = False) -> Chart:
    legend = tuple((place % len(SERIES) + 1, name) for place, name in enumerate(names))
    return Chart(title=title, description=description, svg=svg, legend=legend, lines=lines)


@contextmanager
def _figure(name: str) -> Iterator[tuple[Axes, Any]]:
    """Axes to draw on, and what makes an SVG of them."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's own fonts have it
        figure = Figure(figsize=SIZE, layout="constrained")
        yield figure.add_subplot(), lambda title, told: _svg(figure, title=title, description=told, prefix=name)


def _svg(figure: Figure, *, title: str, description: str, prefix: str) -> str:
    """The drawing without what a page has no use for, in the page's colours and the reader's font."""
    sink = io.StringIO()
    figure.patch.set_visible(False)
    figure.axes[0].patch.set_visible(False)
    FigureCanvasSVG(figure).print_svg(sink, metadata={"Date": None})
    drawn = sink.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>|<!--.*?-->", "", drawn, flags=re.S)
    drawn = re.sub(r'<g id="[a-zA-Z_.0-9-]+">', "<g>", drawn)
    drawn = re.sub(r"(\d+\.\d{2})\d+", r"\1", drawn)
    drawn = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", drawn)
    for colour, variable in VARIABLES.items():
        drawn = drawn.replace(colour, variable)
    head, body = re.match(r"<svg[^>]*>", drawn), drawn[drawn.index(">") + 1 :]
    box = re.search(r'viewBox="[^"]*"', head[0])[0]
    words = f'<title id="{prefix}-title">{escape(title)}</title><desc id="{prefix}-told">{description}</desc>'
    xlink = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    opening = f'<svg {box} {xlink} role="img" aria-labelledby="{prefix}-title {prefix}-told">'
    return re.sub(r"\n\s*", "\n", f"{opening}{words}{body}")
