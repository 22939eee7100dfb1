"""The streamed feed: the resident one's pixels in an order of its own, read a few parts at a time."""

import copy
import threading
import time

import pytest
import torch

from sskt.answers import CachedOutputs, LiveOutputs
from sskt.datasets import UNLABELLED
from sskt.errors import DamagedError, InputError, LeavingError
from sskt.feeds import Extras, Feed, ImageSet, ResidentFeed
from sskt.loop import Context, fit
from sskt.orders import Share
from sskt.streamed import AHEAD, BATCHES, Shelf, StreamedFeed
from sskt.views import KINDS
from tests.sskt.learning import CLASSES, POOL, RECIPE, VIEWS, feed, image_set, method, source, training
from tests.sskt.test_answers import column

EDGES = (0, 7, 14, 21, 28, 35, 42, 49, 56, 60)
"""Nine parts; the sixth begins in the pool and ends in the validation split."""
CPU = torch.device("cpu")


class Parts:
    """Reads parts, and keeps account of them."""

    def __init__(self, damaged=(), delay=0.0) -> None:
        self.images, self.damaged, self.delay = image_set().images, set(damaged), delay
        self.asked: list[int] = []

    def __call__(self, part: int) -> torch.Tensor:
        self.asked.append(part)
        time.sleep(self.delay)
        if part in self.damaged:
            raise DamagedError(f"part-{part:05d} is damaged")
        return self.images[EDGES[part] : EDGES[part + 1]].clone()


def streamed(settings=None, *, read=None, window=3, share=None, **named) -> StreamedFeed:
    shelf = Shelf(read or Parts(), EDGES, device=CPU, window=window)
    images = image_set()
    extras = named.pop("extras", None) or Extras(pool=named.pop("pool", False))
    return StreamedFeed(
        ImageSet(shelf, images.labels, images.splits),
        classes=CLASSES,
        training=settings or training(),
        recipe=RECIPE,
        view_count=VIEWS,
        seed=0,
        extras=extras,
        share=share,
        **named,
    )


def cached(one) -> CachedOutputs:
    return CachedOutputs(
        {kind: {name: column(one, name, kind, "fp32") for name in ("logits", "embedding")} for kind in KINDS}
    )


def assert_alike(one, other):
    for name in ("images", "labels", "ids", "views"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name, outputs in one.outputs.items():
        for output, values in outputs.items():
            assert torch.equal(values, other.outputs[name][output])


@pytest.mark.parametrize(
    "extras", [Extras(), Extras(pool=True), Extras(pool=True, pair=True), Extras(pool=True, turned=True)]
)
def test_batches_hold_what_a_resident_feed_would_show_of_the_same_samples_in_the_same_views(extras):
    """To the bit: pixels, labels and what sources say. Only the order is another."""
    wise = source()
    outputs = {"wise": cached(wise)}
    served = streamed(training(pool_batch_size=12), extras=extras, outputs=outputs)
    resident = feed(training(), outputs=outputs, extras=extras)
    for step in range(7):
        batch = served.batch(step)
        assert len(batch.ids) == (20 if extras.pool else 8)
        for one, kind in ((batch, ""), (batch.pair, ""), (batch.turned, "turned")):
            if one is not None:
                expected = resident.gallery.show(one.ids, views=one.views, kind=kind)
                assert torch.equal(one.images, expected)
                said = outputs["wise"](expected, ids=one.ids, views=one.views, kind=kind)
                assert torch.equal(one.outputs["wise"]["logits"], said["logits"])
        labels = image_set().labels[batch.ids]
        assert torch.equal(batch.labels[:8], labels[:8])
        assert (batch.labels[8:] == UNLABELLED).all()
        assert (batch.pair is not None, batch.turned is not None) == (extras.pair, extras.turned)


def test_every_labelled_image_comes_once_a_pass_and_over_passes_in_every_view():
    served = streamed(training(batch_size=9))
    for number in range(VIEWS):
        batches = [served.batch(3 * number + step) for step in range(3)]
        ids = torch.cat([batch.ids for batch in batches])
        assert sorted(ids.tolist()) == [sample for sample in range(POOL) if sample % 4]
    seen = {(sample, view) for step in range(3 * VIEWS) for sample, view in pairs(served.batch(step))}
    assert len(seen) == 27 * VIEWS


def pairs(batch):
    return zip(batch.ids.tolist(), batch.views.tolist(), strict=True)


@pytest.mark.parametrize("delay", [0.0, 0.004])
def test_any_step_can_be_asked_for_and_is_the_same_however_it_was_come_by(delay):
    whole = [streamed(pool=True).batch(step) for step in range(14)]
    served = streamed(pool=True, read=Parts(delay=delay))
    for step in (0, 1, 2, 9, 3, 3, 13, 0):
        assert_alike(served.batch(step), whole[step])


def test_a_training_that_resumes_reads_only_what_its_steps_need():
    read = Parts()
    served = streamed(training(batch_size=4), read=read, window=2)
    served.batch(4)
    served.close()
    beginning = Parts()
    expected = streamed(training(batch_size=4), read=beginning, window=2)
    needed, coming = expected._labelled.wanted(4 + BATCHES, ahead=AHEAD)
    assert set(read.asked) <= {*expected._labelled.wanted(4, ahead=AHEAD)[0], *needed, *coming}
    assert len(read.asked) == len(set(read.asked)), "no part is read twice"


def test_memory_is_bounded_and_no_part_is_read_twice_in_a_pass(monkeypatch):
    monkeypatch.setattr("sskt.streamed.AHEAD", 2)
    read, most = Parts(), 0
    served = streamed(training(batch_size=4), read=read, window=2)
    for step in range(7):  # one pass of 27 images
        served.batch(step)
        most = max(most, len(served.shelf._kept))
    assert most <= 2 + 1 + 2  # window, a batch that lies in two stretches, ahead
    first_pass = read.asked[:6]
    assert sorted(first_pass) == [0, 1, 2, 3, 4, 5], "the parts that have labelled images for training"


def test_processes_share_a_batch_and_read_fewer_parts_each():
    whole = streamed(training(batch_size=8), pool=True)
    reads = [Parts() for _ in range(2)]
    ranks = [
        streamed(training(batch_size=8), pool=True, read=reads[rank], share=Share(rank=rank, world=2))
        for rank in (0, 1)
    ]
    for step in range(9):
        batch, shares = whole.batch(step), [one.batch(step) for one in ranks]
        assert all(len(share.ids) == 8 for share in shares)
        together = torch.cat([share.ids[:4] for share in shares] + [share.ids[4:] for share in shares])
        assert torch.equal(together, batch.ids)
        images = torch.cat([share.images[:4] for share in shares] + [share.images[4:] for share in shares])
        assert torch.equal(images, batch.images)


def test_evaluation_is_that_of_the_resident_feed():
    served, resident = streamed(), feed(training())
    for split in ("validation", "test"):
        for size in (5, 512):
            ours, its = (list(one.evaluation(split, batch_size=size)) for one in (served, resident))
            assert [len(labels) for _, labels in ours] == [len(labels) for _, labels in its]
            for (images, labels), (expected, known) in zip(ours, its, strict=True):
                assert torch.equal(images, expected)
                assert torch.equal(labels, known)


def test_of_a_split_without_labels_there_is_nothing_to_evaluate():
    served = streamed()
    served.set.labels[:] = UNLABELLED
    ((images, labels),) = served.evaluation("test")
    assert (images.shape, len(labels)) == ((0, 1, 8, 8), 0)


def test_the_pool_can_be_asked_from_a_cache_without_reading_an_image():
    wise, read = source(), Parts()
    served = streamed(outputs={"wise": cached(wise)}, read=read)
    resident = feed(training(), outputs={"wise": cached(wise)})
    ids = torch.tensor([5, 0, 35])
    for quarters in (0, 2):
        ours, its = (one.pool().ask("wise", ids, view=1, quarters=quarters) for one in (served, resident))
        assert torch.equal(ours["embedding"], its["embedding"])
    assert torch.equal(served.pool().labels, resident.pool().labels)
    assert read.asked == []
    live = streamed(outputs={"wise": LiveOutputs(wise, ("embedding",))})
    with pytest.raises(InputError, match=r"source 'wise' is live.*resources\.feed to 'resident'"):
        live.pool().ask("wise", ids)


def test_a_live_source_sees_the_images_of_the_batch():
    wise = source()
    batch = streamed(outputs={"wise": LiveOutputs(wise, ("logits",))}).batch(2)
    assert torch.equal(batch.outputs["wise"]["logits"], wise.outputs(batch.images, ("logits",))["logits"])


def test_labels_are_counted_when_they_are_handed_out_and_not_when_they_are_made():
    wise = source()
    served = streamed(outputs={"wise": cached(wise)}, extras=Extras(pool=True, pair=True, turned=True))
    served.batch(0)
    assert served.label_rows == 2 * (16 + 48)
    served.batch(1)
    assert served.label_rows == 2 * 2 * (16 + 48)


def test_a_damaged_part_is_named_in_the_thread_that_trains_when_its_step_comes():
    good = streamed(training(batch_size=4), window=2)
    steps = {part: step for step in range(6, -1, -1) for part in (good.batch(step).ids // 7).tolist()}
    damaged, step = max(steps.items(), key=lambda item: item[1])
    assert step > 2
    served = streamed(training(batch_size=4), window=2, read=Parts(damaged=[damaged]))
    for number in range(step):
        assert_alike(served.batch(number), good.batch(number))
    for _ in range(2):  # whoever asks again is told again
        with pytest.raises(DamagedError, match=f"part-{damaged:05d} is damaged") as caught:
            served.batch(step)
        (note,) = set(caught.value.__notes__)
        assert note == f"part {damaged} of the images, ids {EDGES[damaged]}..{EDGES[damaged + 1] - 1}"


def trained(feed: Feed, *, states=None, leave_at=None, wise=None):
    """Two epochs of kd, from the newest state if there is one; leaves after so many steps."""
    model = method("kd", wise or source(classes=CLASSES), learn_from="all")
    states, steps = [] if states is None else states, iter(range(100))
    context = Context(
        device=CPU,
        save=lambda state: states.append(copy.deepcopy(state)),
        load=lambda: states[-1] if states else None,
        leaving=lambda: leave_at is not None and next(steps) == leave_at,
    )
    progress = fit(model, feed, epochs=2, seed=0, context=context)
    return progress, torch.cat([weight.flatten() for weight in model.export().parameters()])


@pytest.mark.parametrize("leave_at", [1, 3, 5])
def test_a_training_that_left_in_the_midst_of_an_epoch_goes_on_to_the_same_end(leave_at):
    wise = source(classes=CLASSES)
    new = lambda: streamed(pool=True, outputs={"wise": cached(wise)})  # noqa: E731
    progress, weights = trained(new(), wise=wise)
    states = []
    with pytest.raises(LeavingError):
        trained(new(), states=states, leave_at=leave_at, wise=wise)
    again, its = trained(new(), states=states, wise=wise)
    assert torch.equal(weights, its)
    assert again.history == progress.history
    assert again.label_rows == progress.label_rows


def test_learning_from_a_stream_is_learning():
    progress = trained_alone(streamed(training(epochs=8)), epochs=8)
    assert progress.history[-1]["validation_accuracy"] > 60


def test_a_storage_that_stalls_shows_as_waiting():
    quick, slow = (streamed(read=Parts(delay=delay), window=2) for delay in (0.0, 0.1))
    waited = [trained_alone(one).waited for one in (quick, slow)]
    assert waited[1] > waited[0] + 0.1


def trained_alone(served: Feed, *, epochs=1):
    return fit(
        method("scratch", settings=training(epochs=epochs)), served, epochs=epochs, seed=0, context=Context(device=CPU)
    )


def test_parts_are_read_by_other_threads_before_their_step_comes():
    threads, release = set(), threading.Event()

    def read(part):
        threads.add(threading.current_thread().name)
        if len(threads) > 5:
            release.wait(1)
        return image_set().images[EDGES[part] : EDGES[part + 1]]

    served = streamed(training(batch_size=4), read=read, window=2)
    served.batch(0)
    deadline = time.monotonic() + 5
    while len(served.shelf._kept) < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(served.shelf._kept) == 6, "all that a pass needs, for it is less than is read ahead"
    assert all(name.startswith("parts") for name in threads)


def test_a_closed_feed_leaves_no_thread_behind():
    before = set(threading.enumerate())
    served = streamed(pool=True)
    served.batch(0)
    assert set(threading.enumerate()) - before
    served.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    assert set(threading.enumerate()) <= before


def test_an_order_depends_on_nothing_but_seed_and_settings():
    """What a resident feed of the same seed shows is another order of the same images."""
    ours, its = (torch.cat([one.batch(step).ids for step in range(4)]) for one in (streamed(), feed(training())))
    assert not torch.equal(ours, its)
    assert isinstance(feed(training()), ResidentFeed)
    assert ours.tolist() == torch.cat([streamed().batch(step).ids for step in range(4)]).tolist()
    other = torch.cat([streamed(window=4).batch(step).ids for step in range(4)])
    assert not torch.equal(ours, other)
