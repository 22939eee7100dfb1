import pytest
import torch

from sskt import ahead
from sskt.feeds import Extras, ResidentFeed, Share
from tests.sskt.learning import feed, source, training

EVERYTHING = (
    ({}, Extras()),
    ({"labels_per_class": 2}, Extras(pool=True)),
    ({"mix": "mixup"}, Extras(pool=True)),
    ({"mix": "cutmix", "pool_batch_size": 6}, Extras(pool=True)),
    ({"pool_batch_size": 12}, Extras(pool=True, near=("wise", 2))),
    ({}, Extras(pool=True, pair=True, turned=True)),
)


def served(changes: dict, extras: Extras, **more) -> ResidentFeed:
    return feed(training(**changes), sources=[source()], extras=extras, neighbours=2 if extras.near else 0, **more)


def same(one, other) -> None:
    """Two batches, with all that hangs on them."""
    if one is None:
        assert other is None
        return
    for name in ("images", "labels", "ids", "views"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name, values in one.outputs["wise"].items():
        assert torch.equal(values, other.outputs["wise"][name]), name
    same(one.pair, other.pair)
    same(one.turned, other.turned)


@pytest.mark.parametrize(("changes", "extras"), EVERYTHING)
@pytest.mark.parametrize("share", (Share(), Share(rank=1, world=2)))
def test_what_is_drawn_at_once_is_what_is_drawn_step_by_step(changes, extras, share, monkeypatch):
    together = served(changes, extras, share=share)
    assert together.ahead == ahead.MOST_STEPS
    monkeypatch.setattr(ahead, "MOST_STEPS", 1)
    alone = served(changes, extras, share=share)
    assert alone.ahead == 1
    for step in (0, 1, 2, 40, 15, 16, 3):
        same(together.batch(step), alone.batch(step))
    assert together.label_rows == alone.label_rows


def test_a_live_source_is_asked_about_the_step_alone():
    wise = source()
    feed(training(), sources=[wise]).batch(0)
    assert wise.passes == 8


def test_large_images_are_drawn_step_by_step_and_small_ones_together():
    def steps(side: int, rows: int) -> int:
        return ahead.steps_ahead(torch.empty(1, 3, side, side, dtype=torch.uint8), rows=rows)

    assert steps(224, 128) == 1
    assert steps(8, 8) == ahead.MOST_STEPS
    assert 1 < steps(32, 128) < ahead.MOST_STEPS
    assert steps(32, 128) * 128 * 3 * 32 * 32 <= ahead.MOST_BYTES
