"""The verb a person begins with."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline.planning.experiment import load_experiment
from pipeline.progress import say
from pipeline.starting.proposal import Machine, described, has_lite0, propose
from pipeline.starting.survey import survey
from sskt.errors import InputError


def init_verb(arguments: argparse.Namespace) -> int:
    """Write an experiment file for your own folder of images.

    Images lie in FOLDER/class/, or in FOLDER/train/class/ and FOLDER/test/class/; those in FOLDER/unlabelled/ are used
    too. Looks at the images (classes, sizes, which cannot be read), proposes sizes, a source, a target and methods,
    each with its reason in a comment, and writes nothing but that one file.

      python -m pipeline init photos
      python -m pipeline init photos --to experiments/photos.yaml
    """
    file = Path(arguments.to or f"{Path(arguments.folder).resolve().name}.yaml")
    if file.exists():
        raise InputError(f"{str(file)!r} exists; name another file with --to, or remove it")
    if file.suffix not in (".yaml", ".yml"):
        raise InputError(f"--to is {str(file)!r}; an experiment file ends in .yaml")
    seen = survey(arguments.folder)
    machine = Machine(gpus=torch.cuda.device_count(), lite0=has_lite0())
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(propose(seen, machine, name=file.stem), encoding="utf-8")
    trials = len(load_experiment(str(file)).trials())
    for line in described(seen):
        say(f"init    {line}")
    say(f"init    {file}: {trials} trainings. Read it, change what you like, then")
    say(f"        python -m pipeline sweep {file} --dry-run")
    return 0


STARTING_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {"init": init_verb}


def add_starting_arguments(command: argparse.ArgumentParser, name: str) -> None:
    """Declare what the verb takes."""
    command.add_argument("folder", help="folder of images")
    command.add_argument("--to", metavar="FILE", help="the experiment file; without it FOLDER's name and .yaml")
