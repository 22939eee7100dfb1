"""The methods by name. A new one is a file here and a line in METHODS."""

from sskt.errors import unknown_name
from sskt.methods.alignahead import Alignahead
from sskt.methods.at import AT
from sskt.methods.base import Facts, Method, Needs, SourceFacts, Task, check_trial
from sskt.methods.crd import CRD
from sskt.methods.dml import DML
from sskt.methods.dogo import DoGo
from sskt.methods.dreamteacher import DreamTeacher
from sskt.methods.ega import EGA
from sskt.methods.ema import EMA
from sskt.methods.embed import Embed
from sskt.methods.finetune import Finetune
from sskt.methods.kd import KD
from sskt.methods.lsp import LSP
from sskt.methods.maxl import MAXL
from sskt.methods.probe import Probe
from sskt.methods.propagate import Propagate
from sskt.methods.relation import Relation
from sskt.methods.scratch import Scratch
from sskt.methods.seed import SEED
from sskt.methods.smooth import Smooth
from sskt.methods.sskd import SSKD
from sskt.methods.sskt import SSKT

__all__ = ["METHODS", "Facts", "Method", "Needs", "SourceFacts", "Task", "check_trial", "get_method"]

METHODS: dict[str, type[Method]] = {
    "scratch": Scratch,
    "sskt": SSKT,
    "kd": KD,
    "sskd": SSKD,
    "finetune": Finetune,
    "probe": Probe,
    "relation": Relation,
    "embed": Embed,
    "ega": EGA,
    "at": AT,
    "dreamteacher": DreamTeacher,
    "seed": SEED,
    "crd": CRD,
    "lsp": LSP,
    "smooth": Smooth,
    "propagate": Propagate,
    "dml": DML,
    "dogo": DoGo,
    "alignahead": Alignahead,
    "ema": EMA,
    "maxl": MAXL,
}


def get_method(name: str) -> type[Method]:
    """Return the method of that name."""
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
