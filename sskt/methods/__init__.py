"""The methods by name. A new one is a file here and a line in METHODS."""

from sskt.errors import unknown_name
from sskt.methods.base import Facts, Method, Needs, SourceFacts, Task
from sskt.methods.finetune import Finetune
from sskt.methods.kd import KD
from sskt.methods.probe import Probe
from sskt.methods.scratch import Scratch
from sskt.methods.sskt import SSKT

__all__ = ["METHODS", "Facts", "Method", "Needs", "SourceFacts", "Task", "get_method"]

METHODS: dict[str, type[Method]] = {
    "scratch": Scratch,
    "sskt": SSKT,
    "kd": KD,
    "finetune": Finetune,
    "probe": Probe,
}


def get_method(name: str) -> type[Method]:
    """Return the method of that name."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
