"""An album as one picture."""

import io
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipeline.inspecting.album import Album, Said

TOP = 5
NAME = 18
"""Letters of a label that there is room for."""
BLUE, GREY = "#3b6ea8", "#8a8f98"


def draw(album: Album) -> bytes:
    """Draw it as PNG: a line for each sample, and below how sure every source is and what encodings change."""
    lines, columns = len(album.ids), album.views.shape[1] + sum(2 + _near(said) for said in album.said)
    below = 1 if album.said else 0
    figure = Figure(figsize=(1.5 * columns + 1, 1.5 * lines + 2.4 * below + 0.6), dpi=110, layout="constrained")
    figure.suptitle(album.title, x=0.01, ha="left", fontsize=12)
    above, *rest = figure.subfigures(1 + below, 1, height_ratios=[1.5 * lines, 2.4][: 1 + below], squeeze=False)[:, 0]
    grid = above.subplots(lines, columns, squeeze=False)
    for line, axes in enumerate(grid):
        cells = iter(axes)
        _draw_views(album, line, cells)
        for said in album.said:
            _draw_answer(album, said, line, cells)
    for figure_below in rest:
        _draw_sums(album.said, figure_below.subplots(1, 2 * len(album.said), squeeze=False)[0])
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _near(said: Said) -> int:
    """Columns of neighbours."""
    return 0 if said.neighbours is None else said.neighbours.shape[1]


def _draw_views(album: Album, line: int, cells: Iterator[Axes]) -> None:
    for view in range(album.views.shape[1]):
        axes = next(cells)
        _show(axes, album.views[line, view] / 255)
        if line == 0:
            axes.set_title(f"view {view}", fontsize=8)
        if view == 0:
            axes.set_ylabel(f"{album.ids[line]}: {_short(album.truth[line])}", fontsize=8)


def _draw_answer(album: Album, said: Said, line: int, cells: Iterator[Axes]) -> None:
    """What a source sees of the first view, what it takes it for, and what is nearest to it."""
    seen, bars, row = next(cells), next(cells), int(album.rows[line])
    _show(seen, said.seen[line])
    values, places = said.probabilities[row, 0].topk(min(TOP, said.probabilities.shape[-1]))
    names = [_short(said.labels[place]) for place in places.tolist()]
    bars.barh(range(len(names)), values.tolist(), color=BLUE)
    bars.set_yticks([])
    bars.invert_yaxis()
    bars.set_xlim(0, 1)
    bars.set_xticks([])
    for at, (name, value) in enumerate(zip(names, values.tolist(), strict=True)):
        bars.text(0.02, at, f"{name} {value:.2f}", va="center", fontsize=6.5)
    if line == 0:
        seen.set_title(f"{said.name} sees\n{said.seen.shape[-1]} pixels", fontsize=8)
        bars.set_title(f"{said.name} says", fontsize=8)
    for number in range(_near(said)):
        near = next(cells)
        _show(near, album.first_views[said.neighbours[row, number]] / 255)
        if line == 0:
            near.set_title(f"nearest {number + 1}", fontsize=8)


def _draw_sums(all_said: Sequence[Said], cells: Sequence[Axes]) -> None:
    for said, histogram, table in zip(all_said, cells[::2], cells[1::2], strict=True):
        histogram.hist(said.entropy.flatten().tolist(), bins=30, color=GREY)
        histogram.set_title(f"{said.name}: entropy of {said.entropy.numel()} answers, nats", fontsize=8)
        histogram.tick_params(labelsize=7)
        histogram.set_yticks([])
        table.axis("off")
        table.set_title(f"{said.name}: from {said.encoding} to", fontsize=8)
        lines = [
            [one.encoding, f"{one.bytes}", f"{one.change.total_variation:.4f}", f"{100 * one.change.agreement:.1f} %"]
            for one in said.compared
        ]
        drawn = table.table(lines, colLabels=["", "bytes", "variation", "same top"], loc="upper center")
        drawn.auto_set_font_size(value=False)
        drawn.set_fontsize(7)


def _show(axes: Axes, image: Tensor) -> None:
    """Show [C, S, S] in 0..1, grey or in colour, of a clip the centre frame, without interpolation."""
    centre = len(image) // 3 // 2 * 3
    pixels = image[centre : centre + 3].float().permute(1, 2, 0).numpy()
    axes.imshow(
        pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_xticks([])
    axes.set_yticks([])


def _short(name: str) -> str:
    # A dollar sign would begin a formula.
    return (name if len(name) <= NAME else name[: NAME - 1] + "…").replace("$", r"\$")
