"""The verb that shows what lies in the caches."""

import argparse
from collections.abc import Callable
from pathlib import Path

from cluster.storage import checked_storage
from pipeline.inspecting.album import make_album
from pipeline.planning.experiment import load_experiment
from pipeline.progress import say
from pipeline.stages import found_plan
from sskt.errors import InputError


def inspect_verb(arguments: argparse.Namespace) -> int:
    """Show what the sources say of some images, as a picture.

    A line for each image: its views, the first of them as each source sees it, the source's five likeliest labels, and
    the nearest other images where its embedding is cached. Below, for each source, how sure it is over the first shard
    of its cache, and what other encodings would store and change. Reads the caches that are there; makes none.

      python -m pipeline inspect experiments/demo.yaml --to demo.png
      python -m pipeline inspect mine.yaml --samples 12 --to mine.png
    """
    from pipeline.inspecting.picture import draw  # matplotlib

    if arguments.samples < 1:
        raise InputError(f"--samples is {arguments.samples}; it has to be at least 1")
    experiment, file = load_experiment(arguments.experiment, changes=arguments.set), Path(arguments.to)
    if file.suffix.lower() != ".png":
        raise InputError(f"--to is {arguments.to!r}; a picture ends in .png")
    storage = checked_storage(experiment.storage, write=None)
    album = make_album(found_plan(experiment, storage), storage, samples=arguments.samples)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(draw(album))
    sources = ", ".join(said.name for said in album.said) or "no source: no cache is whole yet"
    say(f"inspect {file}: {len(album.ids)} images, {sources}")
    return 0


INSPECTING_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {"inspect": inspect_verb}


def add_inspecting_arguments(command: argparse.ArgumentParser, name: str) -> None:
    """Declare what the verb takes."""
    command.add_argument("experiment", help="the experiment file (YAML)")
    command.add_argument("--samples", type=int, default=6, metavar="N", help="images shown; 6 without it")
    command.add_argument("--to", required=True, metavar="FILE", help="write the picture there (.png)")
