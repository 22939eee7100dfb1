"""Small things the tests of learning share: a set of images that can be learnt, a feed, a task, a source."""

import copy
from dataclasses import replace
from pathlib import Path

import torch

from sskt.answers import LiveOutputs
from sskt.export import export_bytes
from sskt.feeds import Extras, ImageSet, ResidentFeed
from sskt.graphs import Graph, nearest_neighbours
from sskt.methods import Facts, Method, SourceFacts, Task, check_trial, get_method
from sskt.networks import ImageFormat, build_target
from sskt.orders import Share
from sskt.settings import TargetSettings, TrainingSettings, ViewSettings
from sskt.sources import OUTPUTS, Source
from sskt.views import make_recipe

CLASSES, SIZE, VIEWS, POOL = 3, 8, 4, 36
IMAGE = ImageFormat(1, SIZE, (0.4,), (0.3,))
TARGET = TargetSettings(architecture="small_cnn", options={"width": 4})
RECIPE = make_recipe(ViewSettings(ops=({"pad_crop": 1},), count=VIEWS, seed=5), image_size=SIZE)

QUICK = {"sskd": {"head_epochs": 2}}
"""Options of methods that take long with their defaults, where it does not matter."""


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


def feed(
    settings: TrainingSettings,
    *,
    sources=(),
    pool=False,
    share=None,
    seed=0,
    outputs=None,
    extras: Extras | None = None,
    neighbours: int = 0,
) -> ResidentFeed:
    """Serve from live sources that give every output, with graphs of so many neighbours."""
    live = {one.name: LiveOutputs(one, OUTPUTS) for one in sources}
    return ResidentFeed(
        image_set(),
        classes=CLASSES,
        training=settings,
        recipe=RECIPE,
        view_count=VIEWS,
        seed=seed,
        outputs=live if outputs is None else outputs,
        graphs={one.name: graph(one, neighbours) for one in sources if neighbours},
        extras=extras or Extras(pool=pool),
        share=share or Share(),
    )


def served(model: Method, *sources: Source, settings: TrainingSettings | None = None) -> ResidentFeed:
    """The feed with all that a method asks for."""
    needs = model.needs(model.options)
    extras = needs.extras([one.name for one in sources])
    return feed(settings or training(), sources=sources, extras=extras, neighbours=needs.graph)


def graph(one: Source, neighbours: int) -> Graph:
    """The nearest neighbours by the first views of the pool."""
    ids = torch.arange(POOL)
    views = RECIPE.apply(image_set().images[:POOL], ids=ids, views=torch.zeros_like(ids))
    return nearest_neighbours(one.outputs(views, ("embedding",))["embedding"], neighbours)


def frozen_target(folder: Path) -> TargetSettings:
    """A target that starts with the weights of `source()`, some of its parts frozen."""
    path = folder / "start.safetensors"
    path.write_bytes(export_bytes(source().network, settings=TARGET, classes=5))
    return replace(TARGET, weights=str(path), frozen=("stage1", "stage2.1"))


def facts(*sources: Source, rows: int = 8, pool_rows: int = 8, **changes) -> Facts:
    known = {one.name: SourceFacts(one.classes, one.embedding_dim, one.map_shapes(IMAGE)) for one in sources}
    taps = build_target(TARGET, classes=CLASSES, image=IMAGE).tap_shapes(SIZE, 1)
    usual = {"rows": rows, "pool_rows": pool_rows, "pool_size": POOL, "views": VIEWS}
    return Facts(**({"classes": CLASSES, "image": IMAGE, "sources": known, "taps": taps} | usual | changes))


def method(
    name: str,
    *sources: Source,
    settings: TrainingSettings | None = None,
    target: TargetSettings = TARGET,
    seed: int = 0,
    **options,
) -> Method:
    """Build a method over live sources, as a runner would."""
    kind = get_method(name)
    settings = settings or training()
    chosen = kind.Options(**(QUICK.get(name, {}) | options))
    known = facts(*sources, rows=settings.batch_size, pool_rows=settings.pool_batch_size or settings.batch_size)
    check_trial(kind, chosen, known, settings)
    whole = feed(settings, sources=sources, neighbours=kind.needs(chosen).graph)
    task = Task(
        facts=known,
        target=target,
        training=settings,
        steps_per_epoch=whole.steps_per_epoch,
        seed=seed,
        load_source=lambda wanted: copy.deepcopy(next(one for one in sources if one.name == wanted)),
        pool=whole.pool(),
        prepare=lambda module: module,
    )
    return kind(task, chosen)
