import dataclasses
import itertools

import pytest

from pipeline.packing.packed import PoolBlock
from pipeline.planning.specs import CacheSpec, Labels, Segment, kinds_of
from sskt.methods import Needs
from sskt.settings import TrainingSettings
from sskt.views import TURN

LABELS = Labels(
    source={"weights": "abc"},
    views={"operations": [], "seed": 0},
    output="logits",
    kind="",
    width=10,
    encoding="fp16",
    numerics={"device": "cpu"},
)
SPEC = CacheSpec(labels=LABELS, blocks=(PoolBlock(stop=150, fingerprint="old"),), view_count=4)
GROWN = dataclasses.replace(SPEC, blocks=(*SPEC.blocks, PoolBlock(stop=230, fingerprint="new")))


@pytest.mark.parametrize("first", [0, 100])
def test_shards_own_fixed_ranges_that_cover_every_id_once(first):
    for rows in (1, 63, 64, 65, 1000, 50_000, 1_281_167):
        segment = dataclasses.replace(SPEC.segment(0, 0, 4), first=first, stop=first + rows)
        owned = [segment.id_range(shard) for shard in range(segment.shards)]
        assert (owned[0].start, owned[-1].stop) == (first, first + rows)
        assert all(a.stop == b.start for a, b in itertools.pairwise(owned))
        assert all(len(ids) > 0 for ids in owned)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Labels)])
def test_any_difference_in_what_is_said_is_another_cache(field):
    others = {
        "source": {"weights": "abd"},
        "views": {"operations": [], "seed": 1},
        "output": "embedding",
        "kind": "mixup",
        "width": 11,
        "encoding": "fp32",
        "numerics": {"device": "cuda"},
    }
    changed = dataclasses.replace(SPEC, labels=dataclasses.replace(LABELS, **{field: others[field]}))
    assert changed.id != SPEC.id


@pytest.mark.parametrize("change", [{"pool": "other"}, {"first": 1}, {"stop": 149}])
def test_other_samples_are_another_cache(change):
    segment = SPEC.segment(0, 0, 4)
    assert dataclasses.replace(segment, **change).id != segment.id


def test_more_views_are_the_same_cache_in_another_place():
    few, more = SPEC.segment(0, 0, 4), SPEC.segment(0, 4, 8)
    assert few.id == more.id == SPEC.id == dataclasses.replace(SPEC, view_count=8).id
    assert few.prefix != more.prefix


def test_a_pool_that_grows_keeps_the_segments_it_has():
    assert GROWN.segment(0, 0, 4) == SPEC.segment(0, 0, 4)
    assert GROWN.id != SPEC.id
    new = GROWN.segment(1, 0, 4)
    assert (new.first, new.stop, new.rows, GROWN.rows) == (150, 230, 80, 230)


def test_mixed_views_have_one_number_and_show_whole_groups():
    for kind, number in (("mixup", 4), ("cutmix", 5)):
        labels = dataclasses.replace(LABELS, kind=kind)
        segment = Segment(labels=labels, pool="p", first=30, stop=3030, first_view=2, stop_view=4)
        assert labels.name == f"{kind} logits"
        assert segment.view_ids == (number * TURN + 2, number * TURN + 3)
        for shard in range(segment.shards):
            own, shown = segment.id_range(shard), segment.shown_range(shard)
            assert shown.start <= own.start < own.stop <= shown.stop
            assert len(shown) < len(own) + 126
            assert (shown.start - 30) % 64 == 0
            assert (shown.stop - 30) % 64 == 0 or shown.stop == 3030
        upright = dataclasses.replace(segment, labels=LABELS)
        assert [upright.shown_range(shard) for shard in range(16)] == [upright.id_range(shard) for shard in range(16)]


@pytest.mark.parametrize(
    ("needs", "mix", "kinds"),
    [
        (Needs(), "none", ("",)),
        (Needs(turned=True, pool=True), "none", ("", "turned")),
        (Needs(pool=True), "mixup", ("", "mixup")),
        (Needs(), "cutmix", ("",)),
    ],
)
def test_mixed_views_are_read_where_the_pool_is(needs, mix, kinds):
    assert kinds_of(needs, TrainingSettings(epochs=1, mix=mix)) == kinds


def test_turned_views_come_quarter_by_quarter():
    segment = Segment(
        labels=dataclasses.replace(LABELS, kind="turned"), pool="p", first=0, stop=9, first_view=2, stop_view=4
    )
    assert segment.view_ids == tuple(quarters * TURN + view for quarters in (1, 2, 3) for view in (2, 3))
    assert segment.row_bytes == 6 * 20
