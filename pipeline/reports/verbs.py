"""The verbs of a page of results."""

import argparse
from collections.abc import Callable
from pathlib import Path

from pipeline.progress import say
from pipeline.reports.results import Tried, rendered, try_again
from sskt.errors import InputError


def results_verb(arguments: argparse.Namespace) -> int:
    """Write the tables of a page anew, from the results that are stored.

    A table stands between `<!-- results: FILE [--laptop] [--set path=value] -->` and `<!-- end of results -->`; the
    words are those that `sweep` was run with. Trains nothing, and leaves what stands outside such marks alone, and
    tables of which no result is here.

      python -m pipeline results RESULTS.md
    """
    page = _read(arguments.page)
    new = rendered(page, say=say)
    Path(arguments.page).write_text(new, encoding="utf-8")
    say(f"results {arguments.page}: {'as it was' if new == page else 'written anew'}")
    return 0


def verify_results_verb(arguments: argparse.Namespace) -> int:
    """Train a random choice of a page's rows again, with new seeds, and say whether they hold.

    A row holds where the page shows it as the stored results have it, and where the mean of the new seeds lies in the
    95 % interval that the old ones give for it: one sound row in twenty falls outside. Rows of searches, and those of
    a single seed, are left out. The new trainings are stored beside the others. The exit code is 1 where a row does not
    hold.

      python -m pipeline verify-results RESULTS.md
      python -m pipeline verify-results RESULTS.md --rows 5 --seeds 2 --draw 7
    """
    for name in ("rows", "seeds"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} is {getattr(arguments, name)}; it has to be at least 1")
    page = _read(arguments.page)
    tried = try_again(page, rows=arguments.rows, seeds=arguments.seeds, draw=arguments.draw, say=say)
    for one in tried:
        say(_told(one))
    return 0 if all(one.holds for one in tried) else 1


def _told(one: Tried) -> str:
    scores = ", ".join(f"{score:.1f}" for score in one.again)
    interval = f"{one.low:.1f} .. {one.high:.1f}"
    page = "" if one.stands else f"; the page does not show it as stored, {one.said}"
    return f"{'holds' if one.holds else 'FAILS':7} {one.name}: new seeds {scores}, expected {interval}{page}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the page cannot be read: {error}") from error


RESULTS_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "results": results_verb,
    "verify-results": verify_results_verb,
}


def add_results_arguments(command: argparse.ArgumentParser, name: str) -> None:
    """Declare what the verb takes."""
    command.add_argument("page", help="a page of results (Markdown)")
    if name == "verify-results":
        command.add_argument("--rows", type=int, default=3, metavar="N", help="rows that are tried, 3 by default")
        command.add_argument("--seeds", type=int, default=1, metavar="N", help="new seeds of each, 1 by default")
        command.add_argument("--draw", type=int, default=0, metavar="N", help="which choice of rows, 0 by default")
