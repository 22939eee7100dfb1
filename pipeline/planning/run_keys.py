"""What of a trial goes into its run key."""

from typing import Any

from pipeline.planning.experiment import Trial

ONLY_NAMES = {"label", "entry", "point"}
"""Fields of a trial that say where it stands in its file; its outcome does not depend on them."""

YOUNGER = {"precision": "float32"}
"""Settings of a target that run keys are older than, and what they were before: only what differs is said."""

SEMANTICS = 1
"""Part of every run key; raised when the same settings begin to mean another training."""


def said(trial: Trial) -> dict[str, Any]:
    """The fields of a trial that its outcome depends on."""
    settings = vars(trial.target)
    target = {name: settings[name] for name in settings if name not in YOUNGER or settings[name] != YOUNGER[name]}
    return {name: value for name, value in vars(trial).items() if name not in ONLY_NAMES} | {"target": target}
