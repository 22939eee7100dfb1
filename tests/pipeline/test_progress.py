import pipeline.progress
from pipeline.progress import Progress


def test_a_line_says_how_far_how_fast_and_how_long():
    progress = Progress("cache lite0", total=100, unit="views")
    progress.advance(25, note="shard 3")
    assert progress.line(5.0) == "cache lite0: 25 of 100 views, 5/s, 15 s left, shard 3"


def test_without_a_terminal_a_line_is_printed_a_minute(capsys, monkeypatch):
    clock = iter([0.0, 30.0, 61.0, 61.0, 90.0, 122.0, 122.0])
    monkeypatch.setattr(pipeline.progress.time, "monotonic", lambda: next(clock))
    with Progress("sweep", total=10, unit="trials") as progress:
        for _ in range(4):
            progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["sweep: 2 of 10 trials, 0.0328/s, 244 s left", "sweep: 4 of 10 trials, 0.0328/s, 183 s left"]


def test_callers_that_count_themselves_are_followed():
    progress = Progress("pack", total=0, unit="images")
    progress.reach(3, 8)
    progress.reach(5, 8)
    assert (progress.done, progress.total) == (5, 8)


def test_before_anything_is_done_no_time_is_foretold():
    progress = Progress("train", total=8, unit="epochs")
    assert progress.line(61.4) == "train: 0 of 8 epochs, after 61 s"
