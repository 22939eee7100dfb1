"""Knowledge distillation beside torchdistill 1.1.5: epochs per second, and a sweep of 12 trials reckoned from them.

    pip install torchdistill==1.1.5
    python -m benchmarks.torchdistill_kd FOLDER [--teacher efficientnet_lite0] [--side 74]

FOLDER holds CIFAR-10 as `train.parquet`. Both have the same teacher (random weights, 10 classes: its time counts,
not what it says), the student resnet20, batches of 128, crop and flip, KD with T 4 and weight 0.9, SGD, one process.
torchdistill does it as its examples do: a DistillationBox made from a configuration, torchvision's data set with its
transforms, a DataLoader without workers (with them, it would have cores that ours has not), the teacher in every step;
this version stores no teacher's outputs. Ours labels 8 views of every image once and trains from the cache. Steps come
in turns, some at a time, and are counted as if whole epochs had been run; so is our labelling, from batches of it.
"""

import argparse
import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.material import BATCH, CLASSES, IMAGE, VIEWS, cifar, made_up_answers, make_feed, make_method, turns
from benchmarks.plain_loop import Pictures
from sskt.feeds import ImageSet
from sskt.networks import build_target
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.settings import TargetSettings
from sskt.sources import USUAL_BATCH, Source

STEPS, ROWS, LABELLED = 4, 10_000, 256
TRIALS, EPOCHS, SAMPLES = 12, 30, 50_000
Run = Callable[[int], object]


class Enlarged(nn.Module):
    """A teacher that sees larger images than the student, as a module that torchdistill can hold."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.side = network, side

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, 10]."""
        return self.network(F.interpolate(pixels, size=self.side, mode="bilinear", align_corners=False))


def configuration() -> dict[str, Any]:
    """As the YAML files of its examples have it."""
    loss = {
        "key": "KDLoss",
        "kwargs": {
            "student_module_path": ".",
            "student_module_io": "output",
            "teacher_module_path": ".",
            "teacher_module_io": "output",
            "temperature": 4.0,
            "alpha": 0.1,
            "reduction": "batchmean",
        },
    }
    return {
        "num_epochs": EPOCHS,
        "train_data_loader": {
            "dataset_id": "cifar10/train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler},
            "kwargs": {"batch_size": BATCH, "num_workers": 0, "pin_memory": False, "drop_last": True},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.0005}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": loss, "weight": 1.0}}}},
    }


def theirs(images: ImageSet, teacher: nn.Module) -> Run:
    """A step of its training, as its examples' loop has it."""
    from torchdistill.core.distillation import get_distillation_box

    student = build_target(TargetSettings(architecture="resnet20"), classes=CLASSES, image=IMAGE).network
    data = {"cifar10/train": Pictures(images)}
    box = get_distillation_box(
        teacher.eval(), student, data, configuration(), torch.device("cpu"), None, distributed=False, lr_factor=1
    )
    box.pre_epoch_process(epoch=0)

    def endless() -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
        while True:
            yield from box.train_data_loader

    batches = endless()

    def step(_: int) -> None:
        pixels, labels, more = next(batches)
        box.post_forward_process(loss=box.forward_process(pixels, labels, more))

    return step


def ours(images: ImageSet) -> Run:
    """A step from the cache; what it says is made up."""
    answers = made_up_answers(len(images.images), classes=CLASSES, encoding="fp16")
    feed = make_feed(images, {"teacher": answers})
    method = make_method("kd", "resnet20", feed, sources={"teacher": CLASSES})
    return lambda number: method.step(feed.batch(number))


def labelling(images: ImageSet, source: Source) -> Run:
    """A batch of views through the teacher, drawn and encoded."""
    from sskt.encodings import get_encoding

    gallery, encoding = make_feed(images).gallery, get_encoding("fp16", "logits")

    def label(number: int) -> None:
        ids = torch.arange(LABELLED) + number * LABELLED
        seen = gallery.show(ids % len(images.images), views=torch.full_like(ids, number % VIEWS))
        for some in seen.split(USUAL_BATCH["cpu"]):
            encoding.encode(source.outputs(some, ("logits",))["logits"])

    return label


def several(run: Run, count: int) -> Run:
    """Some steps a turn."""
    return lambda turn: [run(number) for number in range(turn * count, (turn + 1) * count)]


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.torchdistill_kd", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", help="with train.parquet of CIFAR-10")
    parser.add_argument("--teacher", default="efficientnet_lite0")
    parser.add_argument("--side", type=int, default=74, help="pixels that the teacher sees")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)  # its box describes itself
    images = cifar(asked.folder, rows=ROWS)
    teacher = build_target(TargetSettings(architecture=asked.teacher), classes=CLASSES, image=IMAGE)
    teacher.preprocess = Preprocess(Preprocessing(3, asked.side, IMAGE.mean, IMAGE.std))
    source = Source("teacher", copy.deepcopy(teacher)).place("cpu")
    sides = [several(theirs(images, Enlarged(teacher.network, asked.side)), STEPS), several(ours(images), STEPS)]
    times = turns([*sides, labelling(images, source)], count=asked.rounds, warm=1)
    live, cached = (min(one) / STEPS for one in times[:2])
    epoch = SAMPLES // BATCH
    cache = min(times[2]) / LABELLED * SAMPLES * VIEWS
    sweeps = [TRIALS * EPOCHS * epoch * live, cache + TRIALS * EPOCHS * epoch * cached]
    print(f"teacher {asked.teacher} at {asked.side} px, student resnet20, batches of {BATCH}, one CPU")
    print(f"torchdistill  {1e3 * live:8.1f} ms a step, {1 / (epoch * live):.5f} epochs/s")
    print(f"ours          {1e3 * cached:8.1f} ms a step, {1 / (epoch * cached):.5f} epochs/s, cache {cache:.0f} s once")
    print(f"ratio         {live / cached:8.2f} of epochs per second")
    print(f"sweep         {sweeps[0] / 3600:8.2f} h and {sweeps[1] / 3600:.2f} h: {sweeps[0] / sweeps[1]:.2f} times")
    print(f"              ({TRIALS} trials of {EPOCHS} epochs, reckoned; the cache of {VIEWS} views is in ours)")


if __name__ == "__main__":
    main()
