"""Sweeps whose results are made up: real plans on scikit-learn's digits, scores of which the truth is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from cluster.storage import FolderStorage
from pipeline.canonical import canonical
from pipeline.planning.experiment import Trial, load_experiment
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.stages import Stages
from pipeline.sweeps.search import table_trials, tried_trials
from sskt.export import export_bytes
from sskt.networks import ImageFormat, build_target
from sskt.settings import TargetSettings

CLASSES, IMAGES = 10, 36
"""Test images of each class; of the real set some have one more."""
HEAD = """
storage: {folder}/store
dataset: {{kind: digits, image_size: 8, validation: 0.2, test: 0.2}}
sources:
  wise: {{weights: {folder}/wise.safetensors}}
  fool: {{weights: {folder}/wise.safetensors}}
target: {{architecture: small_cnn, options: {{width: 4}}}}
"""
EFFECTS = {"wise": 6.0, "fool": -3.0}
METHODS = {"scratch": 0.0, "sskt": 1.0, "kd": -2.0, "finetune": 0.5}

Score = Callable[[Trial, np.random.Generator], float]


def make_plan(folder: Path, text: str, *, name: str = "made_up") -> tuple[Plan, FolderStorage]:
    """The plan of an experiment that says `text` beside data, sources and target."""
    settings = TargetSettings(architecture="small_cnn", options={"width": 4})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_target(settings, classes=CLASSES, image=ImageFormat(1, 8, (0.5,), (0.25,)))
    (folder / "wise.safetensors").write_bytes(export_bytes(network, settings=settings, classes=CLASSES))
    file = folder / f"{name}.yaml"
    file.write_text(HEAD.format(folder=folder) + text)
    stages = Stages(load_experiment(str(file)), lambda line: None)
    return stages.pack(), FolderStorage(stages.storage.uri)


def usual_score(trial: Trial, generator: np.random.Generator) -> float:
    """Sources and methods have effects that add up, a seed has one that its trials share, and the rate has a best."""
    of_seed = np.random.default_rng(trial.seed).normal(0, 1.5)
    of_sources = sum(EFFECTS[name] for name in trial.sources) / max(1, len(trial.sources))
    of_rate = -4 * abs(np.log10(trial.training.lr / 0.05))
    of_alpha = -2 * abs(np.log2(trial.point.get("options.alpha") or 0.5))
    return 78 + METHODS[trial.method] + of_sources + of_rate + of_alpha + of_seed + generator.normal(0, 0.7)


def fill(
    plan: Plan, storage: FolderStorage, *, score: Score = usual_score, by_class: bool = True
) -> list[PlannedTrial]:
    """Make up a result of every trial; of a search first of those it tries, then of the chosen ones with all seeds."""
    generator = np.random.default_rng(0)
    written = [_written(storage, one, score, generator, by_class) for one in tried_trials(plan, storage)]
    known = {one.run_key for one in written}
    return written + [
        _written(storage, one, score, generator, by_class)
        for one in table_trials(plan, storage)
        if one.run_key not in known
    ]


def _written(
    storage: FolderStorage, planned: PlannedTrial, score: Score, generator: np.random.Generator, by_class: bool
) -> PlannedTrial:
    result = made_up(planned, score(planned.trial, generator), generator)
    if not by_class:
        del result["by_class"]
    file = storage.path(f"results/{planned.run_key}.json")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(canonical(result))
    return planned


def made_up(planned: PlannedTrial, score: float, generator: np.random.Generator) -> dict[str, object]:
    """A result as `pipeline.trials.trials.run_trial` writes it, with a learning curve that ends near the score."""
    epochs = planned.trial.training.epochs
    way = 1 - np.exp(-4 * np.arange(1, epochs + 1) / epochs)
    curve = 10 + (score - 10) * way + generator.normal(0, 0.4, epochs)
    history = [
        {"epoch": epoch + 1, "loss": float(2.3 * (1 - way[epoch]) + 0.01), "validation_accuracy": float(value)}
        for epoch, value in enumerate(curve)
    ]
    hits = generator.binomial(IMAGES, np.clip(score / 100, 0, 1), CLASSES)
    confusion = np.stack([_mistaken(place, hit, generator) for place, hit in enumerate(hits.tolist())])
    return {
        "run_key": planned.run_key,
        "label": planned.trial.label,
        "spec": planned.spec,
        "metric": "accuracy",
        "test": {"accuracy": float(score)},
        "validation": {"accuracy": history[-1]["validation_accuracy"]},
        "best_epoch": max(history, key=lambda epoch: epoch["validation_accuracy"])["epoch"],
        "history": history,
        "label_rows": 2000 * len(planned.trial.sources),
        "training_seconds": 4.0,
        "seconds": float(generator.uniform(3, 4) + 2 * len(planned.trial.sources)),
        "processes": 1,
        "side_by_side": 2,
        "versions": {"torch": "2.14.1", "python": "3.11.7", "device": "x86_64", "commit": "0123456789abcdef"},
        "by_class": {"confusion": confusion.tolist()},
    }


def _mistaken(place: int, hits: int, generator: np.random.Generator) -> np.ndarray:
    """For what the images of a class were taken, [classes]: most of those missed for the next class."""
    others = np.full(CLASSES, 0.4 / (CLASSES - 2))
    others[place], others[(place + 1) % CLASSES] = 0, 0.6
    counts = generator.multinomial(IMAGES - hits, others)
    counts[place] = hits
    return counts
