"""What the experiments of the papers' tables would cost, from multiply-adds counted in the networks; none is trained.

    python -m benchmarks.experiment_costs experiments/sskt/*.yaml

Sources see every view of the pool once; a training step counts three passes of the target, more for methods that take
more. Left out: reading, decoding, transfer modules. A device is taken to do 5e12 multiply-adds a second (10 TFLOP/s),
which an A100 should do with most of these networks in TF32 (an assumption); numbers of images are the published ones.
"""

import json
import sys
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline.canonical import canonical
from pipeline.planning.experiment import Experiment, Trial, load_experiment
from sskt.datasets import DatasetSettings
from sskt.networks import get_architecture
from sskt.networks.preprocess import Preprocessing

PER_SECOND = 5e12
IMAGES = {
    "CIFAR10": (50_000, 32), "CIFAR100": (50_000, 32), "STL10-labelled": (5_000, 96), "Places365": (1_803_460, 256),
    "ImageNet": (1_281_167, 256), "VOCDetection": (5_011, 256), "digits": (1_438, 16), "cifar10": (50_000, 32),
    "UCF101": (9_537, 112), "HMDB51": (3_570, 112),
}  # fmt: skip
"""Training images and their side, the last three by the folder they are in; of UCF101 and HMDB51 clips of split 1."""
PASSES = {"dml": 2, "dogo": 4, "sskd": 4, "maxl": 5}
"""How often a step takes the target, as multiples of the usual three passes; once where nothing is said."""


def images(dataset: DatasetSettings) -> tuple[int, int]:
    """Training images and the side they are packed at."""
    path = Path(dataset.path or "")
    folder = path.parent.name if path.suffix else path.name
    count, side = IMAGES[dataset.name or folder or dataset.kind]
    return int(count * (1 - dataset.validation)), dataset.image_size or side


def trial_work(trial: Trial, dataset: DatasetSettings) -> float:
    """Multiply-adds of a whole training."""
    count, side = images(dataset)
    training = trial.training
    classes = {"CIFAR10": 10, "CIFAR100": 100}.get(dataset.name or "", 10)
    seen = count if training.steps_per_epoch is None else training.steps_per_epoch * training.batch_size
    twice = 2 if getattr(trial.options, "learn_from", "") == "all" else 1
    target = canonical(trial.target.architecture), canonical(trial.target.options)
    forward = macs(*target, classes=classes, channels=dataset.stored_channels, side=side)
    return 3 * PASSES.get(trial.method, 1) * twice * training.epochs * seen * forward


def source_work(experiment: Experiment, name: str) -> float:
    """Multiply-adds of all views of the pool."""
    count, side = images(experiment.dataset)
    source = experiment.sources[name]
    if source.architecture is None:  # of this project, on the images as they are
        return 0.0
    architecture = get_architecture(source.architecture)
    usual = architecture.preprocessing().size if architecture.preprocessing else None
    size = source.input.size or usual
    seen = Preprocessing(0, None if source.input.scale else size, (), (), source.input.scale).side(side)
    network = canonical(source.architecture), canonical(source.options)
    return count * experiment.views.count * macs(*network, classes=1000, channels=3, side=seen)


@cache
def macs(architecture: str, options: str, *, classes: int, channels: int, side: int) -> float:
    """Multiply-adds of one forward pass of an image [channels, side, side]."""
    build = get_architecture(json.loads(architecture)).build
    network = build(classes=classes, channels=channels, options=json.loads(options)).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, channels, side, side))
    return counter.get_total_flops() / 2


def main() -> None:
    """Print a line for each file named."""
    print(f"{'experiment':44} {'trials':>6} {'sources, h':>10} {'targets, h':>10}")
    for file in sys.argv[1:]:
        experiment = load_experiment(file)
        trials = experiment.possible_trials()
        used = {name for trial in trials for name in trial.sources}
        sources = sum(source_work(experiment, name) for name in used)
        targets = sum(trial_work(trial, experiment.dataset) for trial in trials)
        print(f"{file:44} {len(trials):6} {sources / PER_SECOND / 3600:10.2f} {targets / PER_SECOND / 3600:10.1f}")


if __name__ == "__main__":
    main()
