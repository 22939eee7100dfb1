"""Ctrl-C and SIGTERM that do not get lost: a KeyboardInterrupt raised deep inside a library may be swallowed there."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN = 5.0
"""Seconds after which an interrupt that had no effect is raised anew."""


@contextmanager
def insistent_interrupts(*, again: float = AGAIN) -> Iterator[None]:
    """Inside the block Ctrl-C and SIGTERM raise KeyboardInterrupt, again and again until the block ends.

    A command that was started to ignore Ctrl-C, as shells start those in the background, goes on ignoring it.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    numbers = (signal.SIGTERM, signal.SIGALRM) if ignored else (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, again)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
