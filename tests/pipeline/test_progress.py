import pipeline.progress
from pipeline.progress import Progress, complain, say


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


def test_a_log_of_json_has_what_people_are_told(log_lines, monkeypatch):
    clock = iter([0.0, 61.0, 61.0])
    say("pack    pictures: 180 images")
    complain("\nerror: no such file")
    with monkeypatch.context() as patch:
        patch.setattr(pipeline.progress.time, "monotonic", lambda: next(clock))
        with Progress("sweep", total=10, unit="trials") as progress:
            progress.advance(4)
    notice, error, step = log_lines()
    assert (notice["level"], notice["event"], notice["message"]) == ("info", "notice", "pack    pictures: 180 images")
    assert (error["level"], error["event"], error["message"]) == ("error", "error", "error: no such file")
    assert [step[name] for name in ("event", "what", "done", "total", "unit", "seconds")] == [
        "progress", "sweep", 4, 10, "trials", 61.0,
    ]  # fmt: skip


def test_people_are_told_where_no_json_is_asked_for(capsys, monkeypatch):
    monkeypatch.delenv("SSKT_LOG", raising=False)
    say("pack    pictures")
    complain("error: no such file")
    assert capsys.readouterr() == ("pack    pictures\n", "error: no such file\n")
