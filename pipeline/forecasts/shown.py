"""A forecast in words."""

from collections.abc import Callable, Iterator, Sequence

from pipeline.forecasts.figures import Forecast, Side, Size, scaling_line
from pipeline.forecasts.forecast import spoken
from pipeline.forecasts.records import Compared

UNKNOWN = "unknown"


def forecast_lines(forecast: Forecast) -> Iterator[str]:
    """All figures, line by line."""
    yield f"trials  {forecast.trials} to do, {forecast.found} found; {forecast.epochs} epochs"
    yield f"bytes   packed images {megabytes(forecast.dataset_bytes)}"
    for name, size in forecast.cache_bytes.items():
        yield f"bytes   cache of {name} {megabytes(size)}"
    checkpoints = UNKNOWN if forecast.checkpoint_bytes is None else f"{megabytes(forecast.checkpoint_bytes)} at most"
    yield f"bytes   checkpoints {checkpoints}"
    yield f"bytes   memory of a node {megabytes(forecast.node_bytes)}"
    yield ""
    yield f"{'':<22}{'cached':>14}{'live':>14}"
    for name, said in ROWS.items():
        yield f"{name:<22}{said(forecast.cached):>14}{said(forecast.live):>14}"
    if forecast.sizes:
        yield from _size_lines(forecast.sizes)
    for missing in forecast.unknown:
        yield f"unknown {missing}: run with --measure, or run some trials"
    for warning in forecast.warnings:
        yield f"warning {warning}"


def compared_lines(compared: Sequence[Compared]) -> Iterator[str]:
    """What was forecast beside what came."""
    for one in compared:
        ratio = "" if one.ratio is None else f": {one.ratio:.2f} times what came"
        yield f"{one.what:<14} forecast {one.forecast:.0f}, actual {one.actual:.0f} {one.unit}".rstrip() + ratio


def megabytes(size: float) -> str:
    """E.g. `8.65 MB`."""
    return f"{size / 1e6:.2f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def _hours(hours: float | None) -> str:
    return UNKNOWN if hours is None else f"{hours:.3g}"


def _requests(*kinds: str) -> Callable[[Side], str]:
    return lambda side: f"{sum(side.requests.get(kind, 0) for kind in kinds)}"


ROWS: dict[str, Callable[[Side], str]] = {
    "source passes": lambda side: str(side.passes),
    "source device hours": lambda side: _hours(side.source_hours),
    "training device hours": lambda side: _hours(side.training_hours),
    "PUT, LIST": _requests("PUT", "LIST"),
    "GET": _requests("GET"),
    "DELETE": _requests("DELETE"),
    "wall clock": lambda side: UNKNOWN if side.seconds is None else spoken(side.seconds),
    "cost in dollars": lambda side: UNKNOWN if side.cost is None else f"{side.cost:.2f}",
}


def _size_lines(sizes: list[Size]) -> Iterator[str]:
    yield ""
    yield f"{'nodes':>6}{'wall clock':>14}{'dollars':>10}{'useful':>8}{'losses':>8}  the rest goes mostly to"
    for one in sizes:
        yield (
            f"{one.nodes:>6}{spoken(one.seconds):>14}{one.cost:>10.2f}{100 * one.efficiency:>6.0f} %{one.losses:>8}"
            f"  {one.limit}"
        )
    line = scaling_line(sizes)
    if line:
        yield line
