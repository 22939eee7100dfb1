"""Progress of long work: a bar in a terminal, a line a minute elsewhere."""

import logging
import sys
import time

from tqdm import tqdm

from cluster.logs import as_json, event

QUIET_SECONDS = 60.0


def say(line: str) -> None:
    """Tell the person at the command line, or whoever reads the log."""
    if as_json():
        event("notice", message=line.strip())
    else:
        print(line, flush=True)  # noqa: T201 (this is the command line)


def complain(line: str) -> None:
    """Tell them why a command ends."""
    if as_json():
        event("error", level=logging.ERROR, message=line.strip())
    else:
        print(line, file=sys.stderr)  # noqa: T201


class Progress:
    """Counts finished pieces of work and shows rate and time left."""

    def __init__(self, what: str, *, total: int, unit: str) -> None:
        self.what, self.total, self.unit = what, total, unit
        self.done, self.note = 0, ""
        self._began = self._told = time.monotonic()
        terminal = sys.stderr.isatty() and not as_json()
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}", leave=False, dynamic_ncols=True) if terminal else None

    def advance(self, count: int = 1, *, note: str = "") -> None:
        """Count finished pieces; a note says the latest of interest."""
        self.done += count
        self.note = note or self.note
        if self._bar is not None:
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._told >= QUIET_SECONDS:
            self._told = time.monotonic()
            self._tell(self._told - self._began)

    def reach(self, done: int, total: int) -> None:
        """Say how far the work is, for callers that count themselves."""
        self.total = total
        if self._bar is not None:
            self._bar.total = total
        self.advance(done - self.done)

    def _tell(self, seconds: float) -> None:
        if as_json():
            event("progress", what=self.what, done=self.done, total=self.total, unit=self.unit, seconds=seconds)
        else:
            print(self.line(seconds), file=sys.stderr, flush=True)  # noqa: T201

    def line(self, seconds: float) -> str:
        """One line on how far the work is after so many seconds; before anything is done no time is foretold."""
        rate = self.done / seconds
        left = f"{rate:.3g}/s, {(self.total - self.done) / rate:.0f} s left" if self.done else f"after {seconds:.0f} s"
        note = f", {self.note}" if self.note else ""
        return f"{self.what}: {self.done} of {self.total} {self.unit}, {left}{note}"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
