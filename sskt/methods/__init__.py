"""The methods by name. A new one is a file here and a line in METHODS."""

from sskt.errors import unknown_name
from sskt.methods.base import Facts, Method, Needs, SourceFacts, Task
from sskt.methods.dml import DML
from sskt.methods.ega import EGA
from sskt.methods.ema import EMA
from sskt.methods.embed import Embed
from sskt.methods.finetune import Finetune
from sskt.methods.kd import KD
from sskt.methods.maxl import MAXL
from sskt.methods.probe import Probe
from sskt.methods.relation import Relation
from sskt.methods.scratch import Scratch
from sskt.methods.sskt import SSKT

__all__ = ["METHODS", "Facts", "Method", "Needs", "SourceFacts", "Task", "get_method"]

METHODS: dict[str, type[Method]] = {
    "scratch": Scratch,
    "sskt": SSKT,
    "kd": KD,
    "finetune": Finetune,
    "probe": Probe,
    "relation": Relation,
    "embed": Embed,
    "ega": EGA,
    "dml": DML,
    "ema": EMA,
    "maxl": MAXL,
}


def get_method(name: str) -> type[Method]:
    """Return the method of that name."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
