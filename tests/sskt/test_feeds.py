import torch

from sskt.datasets import UNLABELLED
from sskt.encodings import encode_output, get_encoding
from sskt.feeds import CachedOutputs, IndexStream, LiveOutputs, Share, labelled_ids
from tests.sskt.learning import CLASSES, RECIPE, VIEWS, feed, image_set, source, training


def test_a_stream_gives_every_id_once_a_pass_in_changing_order():
    ids = torch.tensor([3, 5, 8, 13, 21])
    stream = IndexStream(ids, seed=1)
    taken, passes = stream.take(0, 15)
    assert passes.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    rounds = [taken[at : at + 5].tolist() for at in (0, 5, 10)]
    assert all(sorted(one) == ids.tolist() for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


def test_a_stream_can_be_entered_anywhere():
    whole = IndexStream(torch.arange(7), seed=1).take(0, 100)
    for start, count in ((0, 1), (6, 2), (13, 30), (99, 1), (50, 50)):
        part = IndexStream(torch.arange(7), seed=1).take(start, count)
        assert torch.equal(part[0], whole[0][start : start + count])
        assert torch.equal(part[1], whole[1][start : start + count])


def test_labels_in_use_are_the_first_of_each_class():
    images = image_set()
    everything = labelled_ids(images, classes=CLASSES, per_class=None)
    assert everything.tolist() == [sample for sample in range(36) if sample % 4]
    two_each = labelled_ids(images, classes=CLASSES, per_class=2)
    labels = image_set().labels[two_each]
    assert labels.bincount(minlength=CLASSES).tolist() == [2, 2, 2]
    assert two_each.tolist() == [1, 2, 3, 5, 6, 7]


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
        payload = encode_output("logits", logits, get_encoding(encoding)).view(36, VIEWS, -1)
        cached = {"wise": CachedOutputs({"logits": payload}, get_encoding(encoding))}
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
