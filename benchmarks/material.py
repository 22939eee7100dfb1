"""What benchmarks measure with: CIFAR-10 or made-up images, made-up labels of real size, methods, and turns.

Torch and `sskt/` are enough for it; only `cifar` reads Parquet.
"""

import gc
import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from sskt.answers import CachedOutputs, Column, SourceOutputs
from sskt.compiling import lay_channels_last
from sskt.encodings import get_encoding
from sskt.feeds import ImageSet, ResidentFeed
from sskt.methods import Facts, Method, SourceFacts, Task, get_method
from sskt.networks import ImageFormat
from sskt.orders import Share
from sskt.settings import TargetSettings, TrainingSettings, ViewSettings
from sskt.views import make_recipe

CLASSES, SIZE, VIEWS, BATCH = 10, 32, 8, 128
IMAGE = ImageFormat(3, SIZE, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
OPERATIONS = ({"pad_crop": 4}, "hflip")
DISTINCT = 4096
"""Different rows of made-up labels; a cache repeats them, for what they say costs nothing."""


def cifar(folder: str, *, rows: int | None = None) -> ImageSet:
    """The training images of CIFAR-10 from `train.parquet` of a folder, all of them for training."""
    import numpy as np
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(Path(folder) / "train.parquet").slice(0, rows)
    pictures = [np.asarray(Image.open(io.BytesIO(one["bytes"]))) for one in table["image"].to_pylist()]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(table["label"].to_pylist()), torch.zeros(len(images), dtype=torch.int8))


def made_up(rows: int, *, size: int = SIZE, classes: int = CLASSES) -> ImageSet:
    """Noise, all of it for training."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (rows, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(rows) % classes, torch.zeros(rows, dtype=torch.int8))


def made_up_answers(rows: int, *, classes: int, encoding: str, device: torch.device | None = None) -> SourceOutputs:
    """A cache of logits, [rows, VIEWS] of them."""
    stored = get_encoding(encoding, "logits")
    logits = torch.randn(DISTINCT, classes, generator=torch.Generator().manual_seed(0)) * 4
    encoded = stored.encode(logits)
    payload = encoded[torch.arange(rows * VIEWS) % DISTINCT].view(rows, VIEWS, -1).to(device)
    return CachedOutputs({"": {"logits": Column(payload, stored, classes)}})


def make_feed(
    images: ImageSet,
    outputs: Mapping[str, SourceOutputs] | None = None,
    *,
    batch: int = BATCH,
    classes: int = CLASSES,
    share: Share | None = None,
) -> ResidentFeed:
    """A resident feed of the usual views of small images."""
    size = images.images.shape[-1]
    return ResidentFeed(
        images,
        classes=classes,
        training=settings(batch),
        recipe=make_recipe(ViewSettings(ops=OPERATIONS, count=VIEWS), image_size=size),
        view_count=VIEWS,
        seed=0,
        outputs=outputs,
        share=share or Share(),
    )


def settings(batch: int = BATCH) -> TrainingSettings:
    """How targets are trained."""
    return TrainingSettings(epochs=100, batch_size=batch, lr=0.05)


def make_method(
    name: str,
    target: str | TargetSettings,
    feed: ResidentFeed,
    *,
    sources: Mapping[str, int] | None = None,
    classes: int = CLASSES,
    tie: Callable[[nn.Module], nn.Module] = lambda module: module,
    **options: object,
) -> Method:
    """A method with its target on the feed's device. sources: how many classes each has; tie: to other processes."""
    rows = feed.training.batch_size // feed.share.world
    device, size = feed.set.images.device, feed.set.images.shape[-1]
    facts = Facts(
        classes=classes,
        image=ImageFormat(3, size, IMAGE.mean, IMAGE.std),
        sources={source: SourceFacts(count, 1) for source, count in (sources or {}).items()},
        taps=(),
        rows=rows,
        pool_rows=rows,
        pool_size=len(feed.set.images),
        views=VIEWS,
    )

    def prepare(module: nn.Module) -> nn.Module:
        module.to(device)
        if device.type == "cpu":  # as `resources.channels_last` has it
            lay_channels_last(module)
        return tie(module)

    task = Task(
        facts=facts,
        target=TargetSettings(architecture=target) if isinstance(target, str) else target,
        training=feed.training,
        steps_per_epoch=feed.steps_per_epoch,
        seed=0,
        load_source=no_source,
        pool=feed.pool(),
        prepare=prepare,
    )
    kind = get_method(name)
    made = kind(task, kind.Options(**options))
    made.train(mode=True)
    return made


def no_source(name: str) -> None:
    """Nothing here starts from a source."""
    raise AssertionError(name)


def turns(sides: Sequence[Callable[[int], object]], *, count: int, warm: int = 5) -> list[list[float]]:
    """Seconds of every call of the sides, which come in turns and are told the number of the turn.

    Seconds of this process on its CPUs, which others that wait for the same CPUs do not make more.
    """
    times: list[list[float]] = [[] for _ in sides]
    gc.collect()
    for turn in range(warm + count):
        for side, known in zip(sides, times, strict=True):
            began = time.process_time()
            side(turn)
            known.append(time.process_time() - began)
    return [known[warm:] for known in times]
