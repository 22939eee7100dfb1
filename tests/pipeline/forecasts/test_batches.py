from types import SimpleNamespace

import pytest
import torch

from pipeline.forecasts import batches
from pipeline.forecasts.batches import SIZES, batch_lines, seconds_by_size


@pytest.fixture
def clock(monkeypatch):
    """The clock by which answers are measured; nothing takes time but they."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(batches, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def taking(clock, seconds, *, memory=10**9):
    """An answer that takes so long a view, by size, and no more views than fit a memory."""

    def answer(size):
        if size > memory:
            raise torch.OutOfMemoryError(f"{size} do not fit")
        clock.now += size * seconds(size)

    return answer


def test_sizes_are_tried_until_they_get_slower(clock):
    found = seconds_by_size(taking(clock, lambda size: 1e-4 if size < 64 else 2e-4), most=512, used=8, seconds=0)
    assert list(found) == [8, 16, 32, 64]
    assert min(found, key=found.get) < 64
    assert found[64] == pytest.approx(2e-4, rel=0.3)


def test_the_size_that_is_used_is_tried_however_slow(clock):
    slow = taking(clock, lambda size: 1e-4 if size < 32 else 4e-4)
    assert list(seconds_by_size(slow, most=512, used=100, seconds=0)) == [8, 16, 32, 100]
    assert list(seconds_by_size(slow, most=64, used=100, seconds=0)) == [8, 16, 32]


def test_no_more_are_tried_than_there_are_or_than_fit(clock):
    quick = lambda size: 1e-5  # noqa: E731
    assert list(seconds_by_size(taking(clock, quick), most=100, used=8, seconds=0)) == [8, 16, 32, 64]
    assert max(seconds_by_size(taking(clock, quick, memory=20), most=512, used=8, seconds=0)) == 16
    assert seconds_by_size(taking(clock, quick, memory=4), most=512, used=8, seconds=0) == {}


def test_a_word_is_said_only_where_another_size_is_much_quicker():
    tried = {"slow": {8: 2.0, 16: 1.0, 32: 1.6}, "right": {16: 1.0, 32: 1.1}, "other": {8: 1.0}, "none": {}}
    line = "cache.batch_size is 32; source slow answers 1.6 times as quickly for 16"
    assert batch_lines(tried, used=32) == [line]
    assert batch_lines(tried, used=max(SIZES)) == []
