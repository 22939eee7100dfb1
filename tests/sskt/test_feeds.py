from dataclasses import replace

import pytest
import torch

from sskt.answers import CachedOutputs, Column, LiveOutputs
from sskt.datasets import UNLABELLED
from sskt.encodings import get_encoding
from sskt.feeds import Extras, ImageSet, ResidentFeed, labelled_ids
from sskt.gallery import Gallery
from sskt.orders import Share
from sskt.settings import ViewSettings
from sskt.views import KINDS, TURN, make_recipe, turned
from tests.sskt.learning import CLASSES, POOL, RECIPE, VIEWS, feed, graph, image_set, source, training
from tests.sskt.test_answers import column


def test_a_batch_is_labelled_images_then_hidden_ones_of_the_pool():
    batch = feed(training(pool_batch_size=12, labels_per_class=2), pool=True).batch(0)
    assert batch.images.shape == (20, 1, 8, 8)
    assert (batch.labels[:8] >= 0).all()
    assert (batch.labels[8:] == UNLABELLED).all()
    assert (batch.ids < 36).all()
    usable = labelled_ids(image_set(), classes=CLASSES, per_class=2)
    assert set(batch.ids[:8].tolist()) <= set(usable.tolist())
    assert torch.equal(batch.labels[:8], image_set().labels[batch.ids[:8]])


def test_the_labelled_images_do_not_depend_on_the_pool():
    alone, beside = feed(training()), feed(training(), pool=True)
    for step in range(5):
        assert torch.equal(alone.batch(step).images, beside.batch(step).images[:8])
        assert torch.equal(alone.batch(step).labels, beside.batch(step).labels[:8])


def test_images_are_the_views_that_the_batch_names():
    batch = feed(training(), pool=True).batch(3)
    assert batch.views.max() < VIEWS
    expected = RECIPE.apply(image_set().images[batch.ids], ids=batch.ids, views=batch.views)
    assert torch.equal(batch.images, expected)


def test_over_passes_every_view_of_a_sample_is_shown():
    settings = training(batch_size=9)
    seen = {sample: set() for sample in labelled_ids(image_set(), classes=CLASSES, per_class=None).tolist()}
    served = feed(settings)
    for step in range(3 * VIEWS):
        batch = served.batch(step)
        for sample, view in zip(batch.ids.tolist(), batch.views.tolist(), strict=True):
            seen[sample].add(view)
    assert all(views == set(range(VIEWS)) for views in seen.values())


def test_processes_share_a_batch_without_overlap():
    whole = feed(training(), pool=True).batch(2)
    parts = [feed(training(), pool=True, share=Share(rank=rank, world=2)).batch(2) for rank in range(2)]
    assert sorted(torch.cat([part.ids for part in parts]).tolist()) == sorted(whole.ids.tolist())
    assert all((part.labels >= 0).sum() == 4 for part in parts)


def test_a_live_and_a_cached_source_fill_the_same_field_alike():
    wise = source()
    images = image_set()
    ids = torch.arange(36).repeat_interleave(VIEWS)
    views = torch.arange(VIEWS).repeat(36)
    logits = wise.outputs(RECIPE.apply(images.images[ids], ids=ids, views=views), ("logits",))["logits"]
    for encoding, tolerance in (("fp32", 1e-5), ("fp16", 1e-2)):
        stored = get_encoding(encoding, "logits")
        column = Column(stored.encode(logits).view(36, VIEWS, -1), stored, logits.shape[1])
        cached = {"wise": CachedOutputs({"": {"logits": column}})}
        live = {"wise": LiveOutputs(wise, ("logits",))}
        from_cache = feed(training(), pool=True, outputs=cached).batch(1).outputs["wise"]["logits"]
        from_source = feed(training(), pool=True, outputs=live).batch(1).outputs["wise"]["logits"]
        shift = (from_cache - from_source).mean(dim=1, keepdim=True)
        assert (from_cache - from_source - shift).abs().max() < tolerance


def test_labels_read_are_counted():
    served = feed(training(), sources=[source(), source("wiser")], pool=True)
    served.batch(0)
    served.batch(1)
    assert served.label_rows == 2 * 16 * 2


def test_evaluation_shows_each_labelled_image_of_a_split_once_unchanged():
    images = image_set()
    shown = list(feed(training()).evaluation("test", batch_size=5))
    assert [len(labels) for _, labels in shown] == [5, 5, 2]
    assert torch.equal(torch.cat([some for some, _ in shown]), images.images[48:])
    assert torch.equal(torch.cat([labels for _, labels in shown]), images.labels[48:])


def test_an_epoch_is_one_pass_over_the_labelled_images_unless_told():
    assert feed(training()).steps_per_epoch == 4
    assert feed(training(steps_per_epoch=9)).steps_per_epoch == 9


def test_a_pair_is_the_same_samples_in_other_views():
    alone, paired = feed(training(), pool=True), feed(training(), extras=Extras(pool=True, pair=True))
    seen = {}
    for step in range(12):
        batch = paired.batch(step)
        assert torch.equal(batch.ids, batch.pair.ids)
        assert torch.equal(batch.ids, alone.batch(step).ids)
        assert (batch.views != batch.pair.views).all()
        assert (batch.pair.labels == UNLABELLED).all()
        expected = RECIPE.apply(image_set().images[batch.ids], ids=batch.ids, views=batch.pair.views)
        assert torch.equal(batch.pair.images, expected)
        for side in (batch, batch.pair):
            for sample, view in zip(side.ids.tolist(), side.views.tolist(), strict=True):
                seen.setdefault(sample, set()).add(view)
    assert any(views == set(range(VIEWS)) for views in seen.values())


def test_turned_views_come_quarter_by_quarter():
    wise = source()
    batch = feed(training(), sources=[wise], extras=Extras(turned=True)).batch(1)
    size = len(batch.ids)
    assert len(batch.turned.images) == 3 * size
    assert (batch.turned.labels == UNLABELLED).all()
    for quarters in (1, 2, 3):
        rows = slice((quarters - 1) * size, quarters * size)
        assert torch.equal(batch.turned.ids[rows], batch.ids)
        views = turned(batch.views, quarters)
        assert torch.equal(batch.turned.views[rows], views)
        shown = RECIPE.apply(image_set().images[batch.ids], ids=batch.ids, views=views)
        assert torch.equal(batch.turned.images[rows], torch.rot90(shown, quarters, dims=(2, 3)))
    expected = wise.outputs(batch.turned.images, ("logits",))["logits"]
    assert torch.allclose(batch.turned.outputs["wise"]["logits"], expected, atol=1e-5)


def test_neighbours_follow_each_image_of_the_pool():
    wise = source()
    served = feed(
        training(pool_batch_size=12), sources=[wise], extras=Extras(pool=True, near=("wise", 2)), neighbours=3
    )
    order = feed(training(pool_batch_size=4), pool=True)
    found = graph(wise, 3)
    for step in range(4):
        batch = served.batch(step)
        groups = batch.ids[8:].view(4, 3)
        assert torch.equal(groups[:, 0], order.batch(step).ids[8:])
        assert torch.equal(groups[:, 1:], found.ids[groups[:, 0], :2])


def test_processes_share_whole_neighbourhoods():
    def served(**share):
        return feed(
            training(pool_batch_size=12),
            sources=[wise],
            extras=Extras(pool=True, near=("wise", 2)),
            neighbours=2,
            **share,
        )

    wise = source()
    whole = served().batch(2).ids[8:].view(4, 3)
    for rank in range(2):
        mine = served(share=Share(rank=rank, world=2)).batch(2).ids[4:].view(2, 3)
        assert torch.equal(mine, whole[rank::2])


def test_the_pool_hides_the_labels_that_may_not_be_used():
    served = feed(training(labels_per_class=2))
    labels = served.pool().labels
    usable = labelled_ids(image_set(), classes=CLASSES, per_class=2)
    assert len(labels) == 36
    assert (labels != UNLABELLED).nonzero().squeeze(1).tolist() == usable.tolist()
    assert torch.equal(labels[usable], image_set().labels[usable])


@pytest.mark.parametrize("quarters", [0, 2])
def test_the_pool_can_be_asked_for_any_view(quarters):
    wise, ids = source(), torch.tensor([5, 0, 35])
    told = feed(training(), sources=[wise]).pool().ask("wise", ids, view=2, quarters=quarters)
    images = RECIPE.apply(image_set().images[ids], ids=ids, views=turned(torch.full_like(ids, 2), quarters))
    expected = wise.outputs(torch.rot90(images, quarters, dims=(2, 3)), ("embedding",))["embedding"]
    assert torch.allclose(told["embedding"], expected, atol=1e-5)


MIXES = pytest.mark.parametrize("mix", ["mixup", "cutmix"])


@MIXES
def test_of_a_batch_the_images_of_the_pool_are_mixed_and_the_labelled_ones_are_not(mix):
    """The labelled rows to the bit: the label of what they would be mixed with may be hidden."""
    cached = {"wise": everything_cached(source())}
    plain, mixed = (feed(training(pool_batch_size=12, mix=one), pool=True, outputs=cached) for one in ("none", mix))
    number = KINDS[mix][0]
    for step in range(8):
        one, other = plain.batch(step), mixed.batch(step)
        for name in ("images", "labels", "ids", "views"):
            assert torch.equal(getattr(one, name)[:8], getattr(other, name)[:8]), name
        assert torch.equal(one.outputs["wise"]["logits"][:8], other.outputs["wise"]["logits"][:8])
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.views[8:] + number * TURN, other.views[8:])
        assert (other.labels[8:] == UNLABELLED).all()
        shown = Gallery(RECIPE, image_set().images, (0, POOL)).show(one.ids[8:], views=other.views[8:], kind=mix)
        assert torch.equal(other.images[8:], shown)
        assert (shown != one.images[8:]).flatten(1).any(dim=1).sum() > 6
    assert mixed.label_rows == plain.label_rows == 8 * 20


def everything_cached(one) -> CachedOutputs:
    return CachedOutputs({kind: {"logits": column(one, "logits", kind, "fp32")} for kind in KINDS})


@MIXES
def test_what_is_said_of_mixed_images_is_the_same_from_a_cache_and_live(mix):
    wise = source()
    live, cached = (
        feed(training(mix=mix), pool=True, outputs={"wise": outputs}).batch(3)
        for outputs in (LiveOutputs(wise, ("logits",)), everything_cached(wise))
    )
    assert torch.equal(live.images, cached.images)
    said, stored = (batch.outputs["wise"]["logits"].log_softmax(dim=1) for batch in (live, cached))
    assert (said - stored).abs().max() < 1e-5
    alone = wise.outputs(live.images, ("logits",))["logits"].log_softmax(dim=1)
    assert (said - alone).abs().max() < 1e-5


@MIXES
def test_without_images_of_the_pool_nothing_is_mixed(mix):
    plain, mixed = feed(training()).batch(2), feed(training(mix=mix)).batch(2)
    assert torch.equal(plain.images, mixed.images)
    assert torch.equal(plain.views, mixed.views)


@MIXES
def test_images_are_mixed_alike_by_any_process_and_within_their_block(mix):
    settings, edges = training(mix=mix), (0, 10, POOL)
    whole = blocks_feed(settings, edges).batch(1)
    other = blocks_feed(settings, (0, POOL)).batch(1)
    assert not torch.equal(whole.images[8:], other.images[8:])
    for rank in range(2):
        mine = blocks_feed(settings, edges, share=Share(rank=rank, world=2)).batch(1)
        assert torch.equal(mine.images, torch.cat([whole.images[rank:8:2], whole.images[8 + rank :: 2]]))


def blocks_feed(settings, edges, *, share=None) -> ResidentFeed:
    """A feed of a pool that grew."""
    return ResidentFeed(
        replace(image_set(), edges=edges),
        classes=CLASSES,
        training=settings,
        recipe=RECIPE,
        view_count=VIEWS,
        seed=0,
        extras=Extras(pool=True),
        share=share,
    )


def several() -> ImageSet:
    """Six images of three classes, of which several may hold; the third says nothing, the last is for testing."""
    labels = [[1, 0, 0], [1, 1, 0], [-1, -1, -1], [0, 0, 0], [1, 0, -1], [0, 0, 1]]
    images = torch.arange(6).view(6, 1, 1, 1).expand(6, 1, 4, 4).to(torch.uint8)
    return ImageSet(images, torch.tensor(labels, dtype=torch.int8), torch.tensor([0, 0, 0, 0, 0, 2], dtype=torch.int8))


def test_an_image_of_several_classes_counts_for_each():
    assert labelled_ids(several(), classes=3, per_class=None).tolist() == [0, 1, 3, 4]
    assert labelled_ids(several(), classes=3, per_class=1).tolist() == [0, 1]
    assert labelled_ids(several(), classes=3, per_class=3).tolist() == [0, 1, 4]


def test_several_labels_are_hidden_and_served_like_one():
    recipe = make_recipe(ViewSettings(), image_size=4)
    served = ResidentFeed(
        several(),
        classes=3,
        training=training(batch_size=4),
        recipe=recipe,
        view_count=1,
        seed=0,
        extras=Extras(pool=True),
    )
    batch = served.batch(0)
    assert served.multi_label
    assert torch.equal(batch.labels[:4], several().labels[batch.ids[:4]])
    assert batch.labels.shape == (8, 3)
    assert (batch.labels[4:] == UNLABELLED).all()
    assert [labels.tolist() for _, labels in served.evaluation("test")] == [[[0, 0, 1]]]
