"""The errors a person meets.

SsktError
├── InputError         what was asked for cannot be done; the command exits with 2
│   └── UnknownNameError   a name that is not in a table; the message lists the known ones
├── DamagedError       something stored is partial, foreign or changed
├── DivergedError      a training whose loss, or what it predicts, is no longer a number
└── LeavingError       a training that was asked to leave its process, and has saved where it is
"""

from collections.abc import Iterable
from difflib import get_close_matches


class SsktError(Exception):
    """Root of all errors this project raises on purpose. One message, so that every error survives pickling."""


class InputError(SsktError, ValueError):
    """A person's input names the field, the value and what would be right."""


class UnknownNameError(InputError):
    """A name that is not in a table."""


class DamagedError(SsktError):
    """A stored object is partial, foreign or changed since it was written."""


class DivergedError(SsktError):
    """A loss, or a prediction, that is no longer finite ends its training."""

    last: dict[str, float] | None = None
    """The metrics of the last epoch that ended well, if one did."""


class LeavingError(SsktError):
    """A training was asked to leave its process. It has saved the step it came to, and goes on elsewhere."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Say which names exist, and which of them was probably meant."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return UnknownNameError(f"{kind} {name!r} is unknown; {hint}known: {', '.join(names) or 'none'}")
