"""How many views a source had best see at once, tried where it will run: a CPU's own caches say so, or a GPU's size."""

import time
from collections.abc import Callable, Mapping

import torch

SIZES = (8, 16, 32, 64, 128, 256, 512)
PAST = 1.25
"""So much slower than the best, and no larger batch is tried, but the one that is used."""
WORTH = 1.2
"""So much quicker than what an experiment says, and it is worth a word."""


def seconds_by_size(answer: Callable[[int], object], *, most: int, used: int, seconds: float) -> dict[int, float]:
    """Seconds that an answer takes a view, by the number of views asked for at once.

    answer: asks for so many views and waits; most: how many there are; used: the size that the experiment has; seconds:
    spent on every size, at least.
    """
    found: dict[int, float] = {}
    past = False
    for size in sorted(one for one in {*SIZES, used} if one <= most):
        if past and size != used:
            continue
        try:
            found[size] = _pace(answer, size, seconds)
        except torch.OutOfMemoryError:
            break
        past = past or found[size] > PAST * min(found.values())
    return found


def _pace(answer: Callable[[int], object], size: int, seconds: float) -> float:
    answer(size)  # warms up
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < seconds or best == float("inf"):
        asked = time.perf_counter()
        answer(size)
        best = min(best, time.perf_counter() - asked)
    return best / size


def batch_lines(tried: Mapping[str, Mapping[int, float]], *, used: int) -> list[str]:
    """What is worth a word. tried: seconds by size, by source; used: the size that the experiment has."""
    return [
        f"cache.batch_size is {used}; source {name} answers {found[used] / found[best]:.1f} times as quickly for {best}"
        for name, found in sorted(tried.items())
        if used in found and found[used] > WORTH * found[best := min(found, key=lambda size: found[size])]
    ]
