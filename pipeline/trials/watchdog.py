"""Ends a process whose training hangs, so that it is started anew from its checkpoint."""

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

HUNG = 75
"""What a process exits with that hangs: the code for `try again later`."""
START = 600.0
"""Seconds that nothing may take: neither the start, which builds and compiles networks, nor a call into a library."""
RECENT = 101
"""Intervals between signs of life whose median is what is usual."""


class Pulse:
    """Tells a training that hangs from one that is slow, by the usual interval between its signs of life."""

    def __init__(self, *, patience: float, floor: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._floor, self._clock = patience, floor, clock
        self._intervals: deque[float] = deque(maxlen=RECENT)
        self._last = self._looked = clock()
        self._started = self._resting = False

    def beat(self) -> None:
        """Give a sign of life."""
        now = self._clock()
        if self._started:  # what came before the first was no step
            self._intervals.append(now - self._last)
        self._last, self._started = now, True

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Around a wait for others, who may take their time; `resting()(f)` is f with that around it."""
        self._resting = True
        try:
            yield
        finally:
            self._resting = False

    def hung(self) -> str | None:
        """Why the training counts as hung, if it does; to be asked every now and then."""
        now = self._clock()
        # Nobody asked for long: the whole process had been stopped, or its machine was asleep.
        stopped, self._looked = now - self._looked > self._floor / 2, now
        if stopped or self._resting:
            self._last = now
        intervals, silence = self._intervals.copy(), now - self._last
        if not intervals:
            return f"hung: no second step after {silence:.0f} s" if silence > max(START, self._floor) else None
        usual = statistics.median(intervals)
        if silence <= max(self._floor, self._patience * usual):
            return None
        return f"hung: no step for {silence:.0f} s, where its median step took {usual:.3g} s"


@contextmanager
def watching(on_hang: Callable[[str], None], *, patience: float = 100, floor: float = 60) -> Iterator[Pulse]:
    """Watch the training of the block: if it hangs, call `on_hang` with the reason and end the process.

    It hangs when no `beat` came for `patience` times the median interval between them, and for `floor` seconds.
    """
    pulse, ended = Pulse(patience=patience, floor=floor), threading.Event()
    watcher = threading.Thread(target=_watch, args=(pulse, on_hang, ended, min(1.0, floor / 4)), daemon=True)
    watcher.start()
    try:
        yield pulse
    finally:
        ended.set()
        watcher.join()
        faulthandler.cancel_dump_traceback_later()


def _watch(pulse: Pulse, on_hang: Callable[[str], None], ended: threading.Event, every: float) -> None:
    while not ended.wait(every):
        # Put off at each look. It needs no interpreter: code that never lets go of it stops this thread as well.
        faulthandler.dump_traceback_later(START, exit=True, file=sys.__stderr__)
        reason = pulse.hung()
        if reason is not None:
            _end(reason, on_hang)


def _end(reason: str, on_hang: Callable[[str], None]) -> None:
    """Print where every thread is, tell why, and end, whatever becomes of the telling."""
    faulthandler.dump_traceback(file=sys.__stderr__)
    try:
        on_hang(reason)
    finally:
        os._exit(HUNG)
