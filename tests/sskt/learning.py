"""Small things the tests of learning share: a set of images that can be learnt, a feed, a task, a source."""

import copy

import torch

from sskt.feeds import ImageSet, LiveOutputs, ResidentFeed, Share
from sskt.methods import Facts, Method, SourceFacts, Task, get_method
from sskt.networks import ImageFormat, build_target
from sskt.settings import TargetSettings, TrainingSettings, ViewSettings
from sskt.sources import Source
from sskt.views import make_recipe

CLASSES, SIZE, VIEWS = 3, 8, 4
IMAGE = ImageFormat(1, SIZE, (0.4,), (0.3,))
TARGET = TargetSettings(architecture="small_cnn", options={"width": 4})
RECIPE = make_recipe(ViewSettings(ops=({"pad_crop": 1},), count=VIEWS, seed=5), image_size=SIZE)


def image_set() -> ImageSet:
    """60 noisy images of three classes by brightness: 36 train (every fourth unlabelled), 12 validation, 12 test."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % CLASSES
    noise = torch.randint(0, 40, (60, 1, SIZE, SIZE), generator=generator)
    images = (noise + labels.view(-1, 1, 1, 1) * 90).to(torch.uint8)
    splits = torch.cat([torch.zeros(36), torch.ones(12), torch.full((12,), 2)]).to(torch.int8)
    shown = torch.where((torch.arange(60) < 36) & (torch.arange(60) % 4 == 0), -1, labels)
    return ImageSet(images, shown, splits)


def source(name: str = "wise", *, classes: int = 5) -> Source:
    """A source with random weights and its own label space."""
    with torch.random.fork_rng():
        torch.manual_seed(len(name) + classes)
        return Source(name, build_target(TARGET, classes=classes, image=IMAGE))


def training(**changes) -> TrainingSettings:
    return TrainingSettings(**({"epochs": 2, "batch_size": 8, "lr": 0.05} | changes))


def feed(settings: TrainingSettings, *, sources=(), pool=False, share=None, seed=0, outputs=None) -> ResidentFeed:
    live = {one.name: LiveOutputs(one, ("logits", "embedding")) for one in sources}
    return ResidentFeed(
        image_set(),
        classes=CLASSES,
        training=settings,
        recipe=RECIPE,
        view_count=VIEWS,
        seed=seed,
        outputs=live if outputs is None else outputs,
        pool=pool,
        share=share or Share(),
    )


def facts(*sources: Source, rows: int = 8, pool_rows: int = 8) -> Facts:
    known = {one.name: SourceFacts(one.classes, one.embedding_dim) for one in sources}
    taps = build_target(TARGET, classes=CLASSES, image=IMAGE).tap_channels(SIZE, 1)
    return Facts(classes=CLASSES, image=IMAGE, sources=known, taps=taps, rows=rows, pool_rows=pool_rows)


def method(name: str, *sources: Source, settings: TrainingSettings | None = None, seed: int = 0, **options) -> Method:
    """Build a method over live sources, as a runner would."""
    kind = get_method(name)
    settings = settings or training()
    task = Task(
        facts=facts(*sources, rows=settings.batch_size, pool_rows=settings.pool_batch_size or settings.batch_size),
        target=TARGET,
        training=settings,
        steps_per_epoch=feed(settings).steps_per_epoch,
        seed=seed,
        load_source=lambda wanted: copy.deepcopy(next(one for one in sources if one.name == wanted)),
        prepare=lambda module: module,
    )
    chosen = kind.Options(**options)
    kind.check(chosen, task.facts)
    return kind(task, chosen)
