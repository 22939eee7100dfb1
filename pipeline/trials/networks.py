"""The trained target of a trial, as a file."""

from pipeline.planning.plan import PlannedTrial
from sskt.export import export_bytes
from sskt.methods import Method


def network_key(run_key: str) -> str:
    """Where a trial's trained target lies."""
    return f"networks/{run_key}.safetensors"


def export_trained(planned: PlannedTrial, method: Method) -> bytes:
    """The trained target alone, as a file that can be a source of other experiments."""
    return export_bytes(method.export(), settings=planned.trial.target, classes=planned.facts.classes)
