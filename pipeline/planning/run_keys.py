"""What of a trial goes into its run key."""

from typing import Any

from pipeline.planning.experiment import Trial

ONLY_NAMES = {"label", "entry", "point"}
"""Fields of a trial that say where it stands in its file; its outcome does not depend on them."""

YOUNGER = {"precision": "float32"}
"""Settings of a target that run keys are older than, and what they were before: only what differs is said."""
YOUNGER_OPTIONS: dict[str, dict[str, Any]] = {"sskt": {"taps": None}}
"""The same of the options of methods."""

SEMANTICS = 1
"""Part of every run key; raised when the same settings begin to mean another training."""


def said(trial: Trial) -> dict[str, Any]:
    """The fields of a trial that its outcome depends on."""
    told = {name: value for name, value in vars(trial).items() if name not in ONLY_NAMES}
    younger = YOUNGER_OPTIONS.get(trial.method, {})
    return told | {"target": _older(trial.target, YOUNGER), "options": _older(trial.options, younger)}


def _older(settings: Any, younger: dict[str, Any]) -> dict[str, Any]:
    """Settings without the younger ones that are what they were before."""
    return {name: value for name, value in vars(settings).items() if name not in younger or value != younger[name]}
