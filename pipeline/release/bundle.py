"""Releasing a trained target: a folder of files, each tried against the trained network before it is kept."""

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cluster.storage import Storage
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.release.card import make_card, readme
from pipeline.trials.networks import network_key
from pipeline.trials.results import Result, read_result, read_results
from sskt.deployed import (
    INPUT,
    OUTPUT,
    TOLERANCE,
    largest_difference,
    onnx_bytes,
    program_bytes,
    sample_images,
    to_program,
)
from sskt.errors import DamagedError, InputError, SsktError
from sskt.export import import_bytes
from sskt.networks import TappedNetwork

Run = Callable[[bytes, Tensor], Tensor]
"""Logits of what a file holds."""


def best_trial(trials: list[PlannedTrial], storage: Storage) -> PlannedTrial:
    """The trial with the best validation score, the first of equals."""
    scores = read_results(storage, [planned.run_key for planned in trials], reduce=lambda result: _validation(result))
    ended = [planned for planned in trials if planned.run_key in scores]
    if not ended:
        raise InputError("no trial of the experiment has a result yet; run `sweep` or `train` first")
    return max(ended, key=lambda planned: scores[planned.run_key])


def release(planned: PlannedTrial, plan: Plan, storage: Storage, *, folder: Path) -> dict[str, float]:
    """Write a trained target in all forms; return, by program, how far its logits are from those of the network."""
    result, data = read_result(storage, planned.run_key), storage.read(network_key(planned.run_key))
    if result is None:
        raise InputError(f"{planned.trial.label}, seed {planned.trial.seed} has no result yet; run `sweep` or `train`")
    if data is None:
        raise DamagedError(f"{network_key(planned.run_key)} is missing; delete the result beside it and train again")
    # A blueprint that names code of one's own was named in the experiment by the same person.
    network = import_bytes(data, architecture=planned.trial.target.architecture)
    programs, differences = make_programs(network, channels=plan.packed.channels, size=plan.packed.size)
    assert network.blueprint is not None  # noqa: S101 (imported networks have one)
    card = make_card(planned, plan, result, architecture=network.blueprint.architecture)
    files = {
        "model.safetensors": data,
        **programs,
        "model.json": card.to_json().encode(),
        "README.md": readme(card, differences=differences).encode(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return differences


def make_programs(network: TappedNetwork, *, channels: int, size: int) -> tuple[dict[str, bytes], dict[str, float]]:
    """The network as programs by file name, each tried, and how far its logits are from the network's."""
    program = to_program(network, channels=channels, size=size)
    programs = {"model.pt2": program_bytes(program), "model.onnx": onnx_bytes(program)}
    images = sample_images(5, channels=channels, size=size)
    with torch.no_grad():
        wanted = network(images).logits
    differences = {name: largest_difference(_RUNS[name](data, images), wanted) for name, data in programs.items()}
    for name, difference in differences.items():
        if not difference <= TOLERANCE:  # so that a NaN is refused as well
            raise SsktError(f"{name}: its logits differ from the network's by {difference:g}; nothing was written")
    return programs, differences


def _validation(result: Result) -> float:
    score: float = result["validation"][result["metric"]]
    return score


def _run_program(data: bytes, images: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = torch.export.load(io.BytesIO(data)).module()(images)
    return logits


def _run_onnx(data: bytes, images: Tensor) -> Tensor:
    import onnxruntime  # only who releases needs it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


_RUNS: dict[str, Run] = {"model.pt2": _run_program, "model.onnx": _run_onnx}
