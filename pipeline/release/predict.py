"""What a released network says of the images in a folder, as CSV."""

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from pipeline.progress import Progress
from pipeline.release.card import Card, read_card
from sskt.datasets.folder import SUFFIXES, load_image
from sskt.datasets.pixels import Unreadable, decode
from sskt.datasets.records import UNLABELLED, Record
from sskt.errors import InputError
from sskt.export import import_bytes
from sskt.networks import TappedNetwork

BATCH = 64
HOLDS = 0.5
"""Probability from which a class is said to hold, where several may."""


def load_release(folder: Path) -> tuple[TappedNetwork, Card]:
    """Read what `export` wrote."""
    try:
        weights, card = (folder / "model.safetensors").read_bytes(), (folder / "model.json").read_bytes()
    except OSError as error:
        raise InputError(
            f"{str(folder)!r} is no exported network ({error}); name a folder that `export` wrote"
        ) from error
    return import_bytes(weights), read_card(card, label=str(folder / "model.json"))


def image_files(place: Path) -> list[Path]:
    """The images in a folder and all below it, or the one image, in the order of their names."""
    if place.is_file():
        return [place]
    found = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not found:
        raise InputError(f"{str(place)!r} holds no image; they end in {', '.join(sorted(SUFFIXES))}")
    return found


def predict(network: TappedNetwork, card: Card, files: list[Path], *, out: TextIO) -> int:
    """Write a line for each file, with the reason where it cannot be read; return how many could not."""
    if card.channels > 3:
        raise InputError(f"the network sees clips of {card.channels // 3} frames; predict reads single images")
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["file", "predicted", *(f"p {name}" for name in card.classes), "error"])
    unread = 0
    with Progress("predict", total=len(files), unit="images") as progress:
        for some in (files[at : at + BATCH] for at in range(0, len(files), BATCH)):
            for line in _answers(network, card, some):
                table.writerow(line)
                unread += bool(line[-1])
            progress.advance(len(some))
    return unread


def _answers(network: TappedNetwork, card: Card, files: list[Path]) -> Iterator[list[str]]:
    pixels = [
        decode(Record(str(file), UNLABELLED, None, partial(load_image, file)), card.channels, card.image_size)
        for file in files
    ]
    good = [image for image in pixels if not isinstance(image, Unreadable)]
    answers = iter(_probabilities(network, card, torch.from_numpy(np.stack(good))) if good else ())
    for file, image in zip(files, pixels, strict=True):
        if isinstance(image, Unreadable):
            yield [str(file), "", *[""] * len(card.classes), image.reason]
        else:
            values = next(answers)
            yield [str(file), _named(card, values), *(f"{value:.4f}" for value in values), ""]


@torch.inference_mode()
def _probabilities(network: TappedNetwork, card: Card, images: torch.Tensor) -> list[list[float]]:
    logits = network(images).logits
    values: list[list[float]] = (logits.sigmoid() if card.multi_label else logits.softmax(dim=1)).tolist()
    return values


def _named(card: Card, values: list[float]) -> str:
    if card.multi_label:
        return "; ".join(name for name, value in zip(card.classes, values, strict=True) if value >= HOLDS)
    return card.classes[max(range(len(values)), key=values.__getitem__)]
