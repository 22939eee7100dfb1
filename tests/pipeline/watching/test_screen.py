"""The screen says what the snapshot holds, whatever its names are made of."""

import io

import pytest
from rich.console import Console

from pipeline.watching.screen import Pace, by_label, line, screen
from pipeline.watching.snapshot import CacheProgress, Snapshot, TrialProgress


def trial(label, seed, state, epoch=0, score=None, reason=""):
    return TrialProgress(label=label, seed=seed, state=state, epoch=epoch, epochs=10, score=score, reason=reason)


SEEN = Snapshot(
    title="mine",
    caches=(CacheProgress(name="lite0 logits", shards=8, made=3), CacheProgress(name="mnist logits", shards=4, made=4)),
    trials=(
        trial("scratch", 0, "done", 10, 80.0), trial("scratch", 1, "done", 10, 84.0),
        trial("sskt [bold]x", 0, "running", 4), trial("sskt [bold]x", 1, "waiting"),
        trial("kd", 0, "failed", reason="the loss [red]is no longer finite"), trial("kd", 1, "done", 10, 90.0),
    ),
)  # fmt: skip


def drawn(snapshot, *, left=None, width=100):
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(screen(snapshot, left=left))
    return out.getvalue()


def test_a_line_holds_it_all():
    assert line(SEEN, left=125.0) == (
        "mine: 44 of 60 epochs; 3 done, 1 running, 1 waiting, 1 failed; lite0 logits 3 of 8 shards; about 2.1 min left"
    )
    assert line(SEEN, left=None).endswith("3 of 8 shards")


def test_the_screen_shows_rows_by_validation_what_runs_and_what_failed():
    text = drawn(SEEN)
    rows = [" ".join(row.split()) for row in text.splitlines()]
    standings = rows[rows.index("method trials validation %") + 1 :]
    assert standings[0] == "kd 1 of 2 90.0"
    assert standings[1].startswith("scratch 2 of 2 82.0 ± 25.4")  # t(1) = 12.706, s = 2.83
    assert standings[2] == "sskt [bold]x 0 of 2 -"
    assert "running sskt [bold]x, seed 0" in text
    assert "epoch 4 of 10" in text
    assert "failed: kd, seed 0: the loss [red]is no longer finite" in text
    assert "3/8 shards" in text
    assert "mnist" not in text  # whole caches are no news


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_screen_fits_its_terminal(width):
    assert max(len(row) for row in drawn(SEEN, left=60.0, width=width).splitlines()) <= width


def test_thousands_of_trials_fit_a_screen():
    many = Snapshot(title="m", caches=(), trials=tuple(trial(f"row {number}", 0, "running") for number in range(5000)))
    assert len(drawn(many).splitlines()) < 60


def test_the_end_is_foretold_from_what_went_by_while_looking():
    def at(epoch):
        return Snapshot(title="m", caches=(), trials=(trial("a", 0, "running", epoch),))

    pace = Pace()
    assert pace.left(at(2), now=100.0) is None
    assert pace.left(at(2), now=110.0) is None
    assert pace.left(at(4), now=120.0) == pytest.approx(6 * 20 / 2)
    assert pace.left(at(10), now=130.0) == 0


def test_rows_keep_their_order():
    assert [label for label, _ in by_label(SEEN.trials)] == ["scratch", "sskt [bold]x", "kd"]
