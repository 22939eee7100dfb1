import dataclasses

import numpy as np
import pytest

from cluster.storage import FolderStorage
from pipeline.caches.labels import Made, commit_shard, finish_segment
from pipeline.caches.segments import open_cache, read_cache, require_cache, segments_of
from sskt.errors import DamagedError
from tests.pipeline.planning.test_specs import GROWN, LABELS, SPEC

TURNED = dataclasses.replace(SPEC, labels=dataclasses.replace(LABELS, kind="turned"))
MIXED = dataclasses.replace(SPEC, labels=dataclasses.replace(LABELS, kind="mixup"))


def said(spec, ids, view_ids) -> np.ndarray:
    """What a source says of views of samples, whoever asks: uint8 [rows, views, bytes]."""
    rows = [
        [np.random.default_rng([sample, view]).bytes(spec.labels.view_bytes) for view in view_ids] for sample in ids
    ]
    return np.frombuffer(b"".join(b"".join(row) for row in rows), np.uint8).reshape(len(ids), len(view_ids), -1)


def make(storage, segment, *, shards=None, finish=True):
    records = []
    for shard in range(segment.shards) if shards is None else shards:
        payload = said(SPEC, segment.id_range(shard), segment.view_ids)
        made = Made(payload=payload, golden={}, passes=len(payload) * len(segment.view_ids), seconds=0.5)
        records.append(commit_shard(storage, segment, shard=shard, made=made))
    if finish:
        finish_segment(storage, segment, records)


def with_views(spec, count):
    return dataclasses.replace(spec, view_count=count)


def ranges(segments):
    return [(segment.first, segment.first_view, segment.stop_view) for segment in segments]


def test_what_is_missing_is_one_segment(tmp_path):
    storage = FolderStorage(str(tmp_path))
    assert ranges(segments_of(storage, SPEC)) == [(0, 0, 4)]
    assert open_cache(storage, SPEC) is None
    with pytest.raises(DamagedError, match=rf"cache {SPEC.id} of source 'wise' is not whole; run `cache`"):
        require_cache(storage, SPEC, source="wise")


def test_more_views_and_more_samples_leave_what_is_there(tmp_path):
    storage = FolderStorage(str(tmp_path))
    make(storage, SPEC.segment(0, 0, 4))
    before = {key: storage.read(key) for key in storage.keys("caches")}
    grown = with_views(GROWN, 6)
    assert ranges(segments_of(storage, grown)) == [(0, 0, 4), (0, 4, 6), (150, 0, 6)]
    for segment in segments_of(storage, grown)[1:]:
        make(storage, segment)
    assert {key: storage.read(key) for key in before} == before
    whole = open_cache(storage, grown)
    np.testing.assert_array_equal(read_cache(storage, whole), said(SPEC, range(230), range(6)))
    assert (whole.passes, whole.seconds) == (230 * 6, 0.5 * (3 + 3 + 2))


@pytest.mark.parametrize("spec", [SPEC, TURNED, MIXED])
def test_the_content_does_not_depend_on_how_it_came_about(tmp_path, spec):
    at_once, bit_by_bit = FolderStorage(str(tmp_path / "one")), FolderStorage(str(tmp_path / "two"))
    make(at_once, spec.segment(0, 0, 4))
    for first, stop in ((0, 1), (1, 3), (3, 4)):
        make(bit_by_bit, spec.segment(0, first, stop))
    one, two = open_cache(at_once, spec), open_cache(bit_by_bit, spec)
    assert one.content == two.content
    np.testing.assert_array_equal(read_cache(at_once, one), read_cache(bit_by_bit, two))
    assert one.content != open_cache(at_once, with_views(spec, 3)).content


@pytest.mark.parametrize("spec", [SPEC, TURNED, MIXED])
def test_the_first_views_of_more_are_enough(tmp_path, spec):
    storage = FolderStorage(str(tmp_path))
    make(storage, spec.segment(0, 0, 4))
    few = with_views(spec, 2)
    whole = open_cache(storage, few)
    expected = said(spec, range(150), [number * (1 << 20) + view for number in spec.labels.numbers for view in (0, 1)])
    np.testing.assert_array_equal(read_cache(storage, whole), expected)


def test_what_was_begun_is_gone_on_with_unless_it_is_more_than_wanted(tmp_path):
    storage = FolderStorage(str(tmp_path))
    make(storage, SPEC.segment(0, 0, 4), shards=[1], finish=False)
    assert ranges(segments_of(storage, SPEC)) == [(0, 0, 4)]
    assert ranges(segments_of(storage, with_views(SPEC, 6))) == [(0, 0, 4), (0, 4, 6)]
    assert ranges(segments_of(storage, with_views(SPEC, 2))) == [(0, 0, 2)]


def test_gaps_are_filled_and_overlaps_do_no_harm(tmp_path):
    storage = FolderStorage(str(tmp_path))
    make(storage, SPEC.segment(0, 2, 4))
    assert ranges(segments_of(storage, SPEC)) == [(0, 0, 2), (0, 2, 4)]
    make(storage, SPEC.segment(0, 0, 3))
    assert ranges(segments_of(storage, SPEC)) == [(0, 0, 3), (0, 3, 4)]
    make(storage, SPEC.segment(0, 0, 4))
    assert ranges(segments_of(storage, SPEC)) == [(0, 0, 4)]


def test_what_is_whole_comes_before_what_was_begun(tmp_path):
    storage = FolderStorage(str(tmp_path))
    make(storage, SPEC.segment(0, 0, 2))
    make(storage, SPEC.segment(0, 2, 4))
    make(storage, SPEC.segment(0, 0, 4), shards=[0], finish=False)
    assert ranges(segments_of(storage, SPEC)) == [(0, 0, 2), (0, 2, 4)]
    assert open_cache(storage, SPEC) is not None
