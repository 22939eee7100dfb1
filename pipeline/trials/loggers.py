"""What TensorBoard, MLflow and Weights & Biases are told of trials, by Ray's own callbacks."""

import importlib
import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.canonical import canonical, plain
from pipeline.planning.plan import PlannedTrial
from pipeline.planning.settings import LogSettings
from sskt.errors import InputError

PACKAGES = {"tensorboard": ("tensorboardX", "tensorboardX"), "mlflow": ("mlflow", "mlflow-skinny")} | {
    "wandb": ("wandb", "wandb")
}
"""By logger: the module it needs, and how to install it. All of MLflow asks for an older pyarrow than this project."""


def check_loggers(log_to: LogSettings | None) -> None:
    """Refuse loggers that cannot work here, before anything is made for them to hear of."""
    for name, (module, package) in PACKAGES.items():
        if log_to is None or getattr(log_to, name) is None:
            continue
        found = importlib.util.find_spec(module)
        if found is None or found.origin is None:  # a folder of that name is no package
            raise InputError(f"log_to.{name} needs the package {module}, which is missing; pip install {package}")
        if name == "wandb" and "WANDB_API_KEY" in os.environ:
            raise InputError(
                "log_to.wandb: Ray would hand WANDB_API_KEY on where its dashboard shows it; unset it, and run "
                "`wandb login` on this machine instead"
            )


def where_told(log_to: LogSettings) -> list[str]:
    """For people: where each logger's words are found."""
    board, mlflow, wandb = log_to.tensorboard, log_to.mlflow, log_to.wandb
    lines = [f"epochs are shown by: tensorboard --logdir {Path(board.folder).absolute()}"] if board else []
    lines += [f"epochs go to MLflow at {mlflow.tracking_uri}"] if mlflow else []
    return lines + ([f"epochs go to the project {wandb.project!r} of Weights & Biases"] if wandb else [])


@dataclass(frozen=True)
class Shown:
    """A trial as far as Ray's loggers ask for it, in words and numbers."""

    trial_id: str
    name: str = field(compare=False)
    config: dict[str, Any] = field(compare=False)
    local_path: str = field(compare=False)
    experiment_dir_name: str = field(compare=False)

    @property
    def evaluated_params(self) -> dict[str, Any]:
        """The same settings: TensorBoard's table of hyperparameters."""
        return self.config

    def init_local_path(self) -> None:
        """Make the trial's folder."""
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self.name


def show(planned: PlannedTrial, trial_id: str, *, experiment: str, folder: str) -> Shown:
    """A trial under its label, seed and run key; its files lie in a folder of these."""
    trial = planned.trial
    parts = (trial.label, f"seed {trial.seed}", planned.run_key)
    place = [re.sub(r"[^\w.=+-]+", "_", part).lstrip(".") for part in (experiment, *parts)]
    return Shown(trial_id, "/".join(parts), spelled(planned), str(Path(folder).absolute().joinpath(*place)), experiment)


def spelled(planned: PlannedTrial) -> dict[str, Any]:
    """All settings of a trial by their paths, as loggers take them: numbers, truth values and text."""
    settings = {name: value for name, value in plain(planned.trial).items() if name not in ("label", "entry", "point")}
    flat, left = dict[str, Any](), [*settings.items()]
    while left:
        path, value = left.pop()
        if isinstance(value, dict):
            left += [(f"{path}.{name}", inner) for name, inner in value.items()]
        else:
            flat[path] = value if isinstance(value, (bool, int, float, str)) else canonical(value)
    return dict(sorted(flat.items()))


def make_loggers(log_to: LogSettings, experiment: str, *, say: Callable[[str], None]) -> list[Any]:
    """Callbacks for one run of Ray Tune."""
    loggers = []
    for name in ("tensorboard", "mlflow", "wandb"):
        settings = getattr(log_to, name)
        if settings is not None:
            ours, errors = _of_ray(name, settings, experiment)
            folder = getattr(settings, "folder", "")
            loggers.append(tell_in_words(ours, experiment, folder=folder, errors=errors, name=name, say=say))
    return loggers


def _of_ray(name: str, settings: Any, experiment: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """Ray's callback, and the errors by which it says that it is out of reach."""
    if name == "tensorboard":
        from ray.tune.logger.tensorboardx import TBXLoggerCallback

        return TBXLoggerCallback(), (OSError,)
    if name == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        wrong: type[Exception] = importlib.import_module("mlflow.exceptions").MlflowException
        title = settings.experiment_name or experiment
        return MLflowLoggerCallback(settings.tracking_uri, experiment_name=title), (wrong, OSError)
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(settings.project, group=experiment), (OSError, ValueError)


def tell_in_words(
    ours: Any,
    experiment: str,
    *,
    folder: str,
    errors: tuple[type[Exception], ...],
    name: str,
    say: Callable[[str], None],
) -> Any:
    """A callback that hands a logger of Ray's trials and epochs as people know them, and outlives its failure."""
    from ray.tune.logger import LoggerCallback  # only inside a session

    class Told(LoggerCallback):
        """The first failure of a logger is its last: what is trained does not depend on who hears of it."""

        def __init__(self) -> None:
            self._works = True

        def setup(self, *_: Any, **__: Any) -> None:
            self._tell(ours.setup)

        def log_trial_start(self, trial: Any) -> None:
            self._tell(lambda: ours.log_trial_start(self._shown(trial, made=True)))

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            metrics = result.get("metrics")
            if metrics:
                epoch = int(metrics["epoch"])
                told = {"training_iteration": epoch, **{key: metrics[key] for key in metrics if key != "epoch"}}
                self._tell(lambda: ours.log_trial_result(epoch, self._shown(trial), told))

        def log_trial_end(self, trial: Any, failed: bool = False) -> None:  # noqa: FBT001, FBT002 (Ray's own)
            failed = failed or (trial.last_result or {}).get("state") == "failed"
            self._tell(lambda: ours.log_trial_end(self._shown(trial), failed))

        def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
            self._tell(lambda: ours.on_experiment_end(trials, **info))

        def _shown(self, trial: Any, *, made: bool = False) -> Shown:
            shown = show(trial.config["planned"], trial.trial_id, experiment=experiment, folder=folder)
            if made and folder:
                shown.init_local_path()
            return shown

        def _tell(self, call: Callable[[], Any]) -> None:
            if not self._works:
                return
            try:
                call()
            except errors as error:
                self._works = False
                say(f"sweep   log_to.{name} hears no more: {str(error).strip().splitlines()[0]}")

    return Told()
