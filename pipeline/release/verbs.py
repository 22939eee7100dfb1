"""The verbs for what a sweep was made for: a network to use."""

import argparse
from collections.abc import Callable
from pathlib import Path

from cluster.session import usable_cpus
from pipeline.computing import compute_here
from pipeline.planning.experiment import load_experiment
from pipeline.progress import say
from pipeline.release.bundle import best_trial, release
from pipeline.release.predict import image_files, load_release, predict
from pipeline.stages import Stages
from pipeline.sweeps.search import table_trials
from sskt.errors import InputError


def export_verb(arguments: argparse.Namespace) -> int:
    """Export a trained target for use elsewhere.

    Writes into a folder: the weights (model.safetensors), the network with its preprocessing as a program for PyTorch
    (model.pt2) and for ONNX runtimes (model.onnx), the classes (model.json) and a model card (README.md). The programs
    are run and compared with the trained network before anything is written. Without --trial it is the trial with the
    best score on the validation split. Trains nothing.

      python -m pipeline export experiments/demo.yaml --to best
      python -m pipeline export mine.yaml --trial 3 --to third
    """
    stages = Stages(load_experiment(arguments.experiment, changes=arguments.set), say, writes=None)
    plan = stages.pack()
    trials = table_trials(plan, stages.storage)
    if arguments.trial is not None and not 0 <= arguments.trial < len(trials):
        raise InputError(f"--trial is {arguments.trial}; the experiment has trials 0 to {len(trials) - 1}")
    planned = best_trial(trials, stages.storage) if arguments.trial is None else trials[arguments.trial]
    compute_here(usable_cpus())
    differences = release(planned, plan, stages.storage, folder=Path(arguments.to))
    told = ", ".join(f"{name} {difference:.1g}" for name, difference in differences.items())
    say(f"export  {planned.trial.label}, seed {planned.trial.seed}: {arguments.to} (logits differ by {told})")
    return 0


def predict_verb(arguments: argparse.Namespace) -> int:
    """Classify the images of a folder with an exported target.

    NETWORK is a folder that `export` wrote. A line of CSV for each image: its file, the predicted class (where several
    may hold, those of a probability of at least 0.5), the probability of every class, and, for one that cannot be read,
    the reason; then the exit code is 1.

      python -m pipeline predict best photos --to photos.csv
    """
    network, card = load_release(Path(arguments.network))
    files = image_files(Path(arguments.images))
    compute_here(usable_cpus())
    with Path(arguments.to).open("w", newline="", encoding="utf-8") as out:
        unread = predict(network, card, files, out=out)
    failed = f", {unread} could not be read" if unread else ""
    say(f"predict {len(files)} images: {arguments.to}{failed}")
    return 1 if unread else 0


RELEASE_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {"export": export_verb, "predict": predict_verb}


def add_release_arguments(command: argparse.ArgumentParser, name: str) -> None:
    """Declare what a verb takes."""
    if name == "export":
        command.add_argument("experiment", help="the experiment file (YAML)")
        command.add_argument("--trial", type=int, metavar="N", help="number of the trial in the experiment, from 0")
        command.add_argument("--to", required=True, metavar="FOLDER", help="write the files there")
    else:
        command.add_argument("network", help="folder of an exported target")
        command.add_argument("images", help="folder of images, searched with all below it, or one image")
        command.add_argument("--to", required=True, metavar="FILE", help="write the CSV there")
