from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import supervise as module
from cluster.jobs import Job, Jobs, JobsError, Order, State, UnreachableError
from cluster.supervise import LONGEST_WAIT, Decision, Do, Limits, Log, Outlet, SoFar, Supervisor, cancel, decide
from tests.dashboard import Dashboard, serving

LIMITS = Limits(tries=3, patience=600)
RUNNING = Job(name="sskt-a", verb="sweep", experiment="mine.yaml", state=State.RUNNING, started=1)
DONE = replace(RUNNING, state=State.SUCCEEDED, exit_code=0)
AWAY = UnreachableError("http://head does not answer")
ORDER = Order(verb="sweep", file="mine.yaml", text=b"storage: /x\n", command="python", name="sskt-a")


def failed(exit_code: int | None, message: str = "error: why") -> Job:
    return replace(RUNNING, state=State.FAILED, exit_code=exit_code, message=message)


@pytest.mark.parametrize(
    ("seen", "so_far", "do", "code", "words"),
    [
        (None, SoFar(), Do.SEND, 0, ""),
        (None, SoFar(sent=1), Do.SEND, 0, "lost (the cluster knows nothing of it); sending it again, number 2 of 3"),
        (None, SoFar(sent=3), Do.END, 1, "lost (the cluster knows nothing of it); submit it again"),
        (RUNNING, SoFar(sent=1), Do.FOLLOW, 0, ""),
        (replace(RUNNING, state=State.WAITING), SoFar(sent=1), Do.FOLLOW, 0, ""),
        (DONE, SoFar(sent=1, told=True), Do.END, 0, ""),
        (replace(RUNNING, state=State.CANCELLED), SoFar(sent=1, told=True), Do.END, 130, "cancelled"),
        (failed(130), SoFar(sent=1, told=True), Do.END, 130, "cancelled"),
        (DONE, SoFar(sent=1), Do.FOLLOW, 0, ""),
        (failed(-9), SoFar(sent=1, vain=4), Do.FOLLOW, 0, ""),
        (DONE, SoFar(sent=1, vain=5), Do.END, 0, ""),
        (failed(2), SoFar(sent=1, told=True), Do.END, 2, "ended with exit code 2: error: why"),
        (failed(1), SoFar(sent=1, told=True), Do.END, 1, "ended with exit code 1: error: why"),
        (failed(127), SoFar(sent=1, told=True), Do.END, 1, "exit code 127"),
        (failed(None), SoFar(sent=2, told=True), Do.SEND, 0, "lost (error: why); sending it again, number 3 of 3"),
        (failed(137), SoFar(sent=1, told=True), Do.SEND, 0, "lost"),
        (failed(-9), SoFar(sent=1, told=True), Do.SEND, 0, "lost"),
        (failed(-9), SoFar(sent=3, told=True), Do.END, 1, "lost (error: why); submit it again, and it goes on"),
        (AWAY, SoFar(sent=1), Do.WAIT, 0, "http://head does not answer; trying again for 10 minutes"),
        (AWAY, SoFar(sent=1, silent=600), Do.END, 1, "http://head does not answer; given up after 10 minutes"),
    ],
)
def test_what_is_seen_decides_what_is_done(seen, so_far, do, code, words):
    decision = decide(seen, so_far, LIMITS)
    assert (decision.do, decision.code) == (do, code)
    assert decision.say.startswith(words) if do is not Do.END else words in decision.say
    assert bool(decision.say) == bool(words)


def test_a_follower_never_sends():
    for seen in (None, failed(None), failed(-9)):
        decision = decide(seen, SoFar(told=True), replace(LIMITS, tries=0))
        assert (decision.do, decision.code) == (Do.END, 1)


@given(
    st.lists(st.sampled_from([None, AWAY, RUNNING, failed(None), failed(137)]), min_size=1, max_size=20),
    st.integers(0, 4),
    st.floats(0, 1000),
)
def test_it_always_ends_where_the_job_does_not_come_back(world, tries, patience):
    """Whatever happens, again and again: so many tries, so much patience without a sign of life, and no more."""
    sent = vain = turns = 0
    silent = waited = 0.0
    told = False
    while True:
        seen = world[turns] if turns < len(world) else (None, AWAY, failed(None))[turns % 3]
        decision = decide(
            seen, SoFar(sent=sent, silent=silent, vain=vain, told=told), Limits(tries=tries, patience=patience)
        )
        assert 0 <= decision.after <= LONGEST_WAIT
        turns, silent, waited = turns + 1, silent + decision.after, waited + decision.after
        if decision.do is Do.END:
            break
        if decision.do is Do.SEND:
            sent, vain, silent, told = sent + 1, 0, 0.0, False
        if seen is RUNNING:
            silent = 0.0
        vain += decision.do is not Do.SEND
        assert turns < 5000
    assert (decision.code, sent <= tries) == (1, True)
    assert waited <= (tries + 1 + world.count(RUNNING)) * (patience + 1) + LONGEST_WAIT * len(world)


@given(st.integers(0, 100), st.floats(0, 599))
def test_waiting_grows_and_keeps_to_the_patience_that_is_left(vain, silent):
    decision = decide(AWAY, SoFar(vain=vain, silent=silent), LIMITS)
    assert decision.do is Do.WAIT
    assert silent + decision.after <= LIMITS.patience
    assert decision.after == min(LIMITS.patience - silent, LONGEST_WAIT, 2.0**vain)


@given(st.text(max_size=40), st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=3))
def test_a_log_is_written_once_however_often_it_breaks_off(text, connections):
    """Each connection tells it from its beginning, in pieces of any size, and breaks off anywhere but the last."""
    written = []
    log = Log(written.append)
    for sizes in [*connections, [len(text)]]:
        log.begin(RUNNING)
        at = 0
        for size in sizes:
            before = "".join(written)
            fresh = log.take(text[at : at + size])
            assert fresh == ("".join(written) != before)
            at += size
        assert text.startswith("".join(written))
    assert "".join(written) == text


@pytest.mark.parametrize("other", [replace(RUNNING, started=2), replace(RUNNING, name="sskt-a-2")])
def test_the_log_of_another_run_is_written_from_its_beginning(other):
    written = []
    log = Log(written.append)
    for job in (RUNNING, RUNNING, other):
        log.begin(job)
        log.take("same")
    assert written == ["same", "same"]


class World:
    """A cluster of which a test says what it is seen like, time after time; what is said last holds on."""

    address = "http://head"

    def __init__(self, *seen, logs=()):
        self.seen, self.logs = list(seen), [list(log) for log in logs]
        self.sent, self.stopped = [], []

    def get(self, name):
        seen = self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]
        if isinstance(seen, Exception):
            raise seen
        return seen and replace(seen, name=name)

    def all(self):
        return []

    def send(self, name, order):
        self.sent.append(name)

    def stop(self, name):
        self.stopped.append(name)

    async def log(self, name):
        for piece in self.logs.pop(0) if self.logs else ():
            if isinstance(piece, Exception):
                raise piece
            yield piece


class Ears(Outlet):
    """Keeps what it is told, and lets time pass by sleeping only."""

    def __init__(self):
        self.written, self.notes, self.slept = [], [], []
        super().__init__(
            write=self.written.append, note=self.notes.append, sleep=self.slept.append, clock=lambda: sum(self.slept)
        )

    __setattr__ = object.__setattr__


def supervise(world, *, order=ORDER, limits=LIMITS, follow=True):
    ears = Ears()
    supervisor = Supervisor(world, "sskt-a", limits=limits, outlet=ears, order=order)
    return supervisor.run(follow=follow), ears


def test_a_job_is_sent_followed_and_its_end_told():
    code, ears = supervise(world := World(RUNNING, RUNNING, DONE, logs=[["one\n", "two\n"]]))
    assert (code, world.sent, ears.written) == (0, ["sskt-a"], ["one\n", "two\n"])
    assert ears.notes == ["sskt-a: sent to http://head"]
    assert sum(ears.slept) == 0


def test_a_detached_job_is_sent_and_left():
    code, ears = supervise(world := World(RUNNING), follow=False)
    assert (code, world.sent, ears.written) == (0, ["sskt-a"], [])


def test_a_connection_that_breaks_is_taken_up_where_it_stood():
    logs = [["one\n", AWAY], [AWAY], ["one\n", "two\n"]]
    code, ears = supervise(world := World(RUNNING, RUNNING, AWAY, AWAY, RUNNING, RUNNING, RUNNING, DONE, logs=logs))
    assert (code, len(world.sent), "".join(ears.written)) == (0, 1, "one\ntwo\n")
    assert ears.notes.count("sskt-a: http://head does not answer; trying again for 10 minutes") == 1
    assert [pause for pause in ears.slept if pause] == sorted(pause for pause in ears.slept if pause)


def test_a_lost_job_is_sent_again_as_often_as_allowed():
    code, ears = supervise(world := World(None), limits=replace(LIMITS, tries=2))
    assert (code, len(world.sent)) == (1, 2)
    assert "sending it again, number 2 of 2" in ears.notes[1]
    assert "submit it again, and it goes on" in ears.notes[-1]


def test_a_cluster_that_stays_away_is_given_up():
    code, ears = supervise(World(RUNNING, RUNNING, AWAY))
    assert code == 1
    assert sum(ears.slept) == pytest.approx(LIMITS.patience)
    assert "given up after 10 minutes" in ears.notes[-1]


def test_a_cluster_that_takes_no_job_is_given_up():
    """It answers that there is none, so the answers are no sign of life of the job."""

    class Refusing(World):
        def send(self, name, order):
            raise AWAY

    code, ears = supervise(Refusing(None))
    assert code == 1
    assert sum(ears.slept) == pytest.approx(LIMITS.patience)


def test_a_log_that_ends_while_the_job_runs_is_asked_for_again_ever_more_slowly():
    code, ears = supervise(World(*[RUNNING] * 20, DONE))
    assert code == 0
    assert [pause for pause in ears.slept if pause] == sorted(pause for pause in ears.slept if pause)
    assert max(ears.slept) == LONGEST_WAIT


def test_a_log_that_falls_silent_is_left_once_the_job_has_ended(monkeypatch):
    """As that of a machine that lost its power: the connection looks alive."""
    monkeypatch.setattr(module, "QUIET", 0.01)

    class Silent(World):
        async def log(self, name):
            import asyncio

            yield "one\n"
            await asyncio.sleep(100)

    for last, ends in ((DONE, 0), (AWAY, 1)):
        code, ears = supervise(Silent(RUNNING, RUNNING, RUNNING, last))
        assert (code, ears.written) == (ends, ["one\n"])


def test_the_log_of_a_job_that_has_ended_is_told_and_if_need_be_given_up():
    code, ears = supervise(World(failed(1)), order=None)
    assert (code, ears.written) == (1, [])
    code, ears = supervise(World(DONE, logs=[[AWAY], ["one\n"]]), order=None)
    assert (code, ears.written) == (0, ["one\n"])
    code, ears = supervise(World(DONE, logs=[[AWAY]] * 20), order=None)
    assert (code, ears.written) == (0, [])
    assert sum(ears.slept) < LIMITS.patience


def test_a_token_that_is_refused_meanwhile_ends_it():
    with pytest.raises(JobsError):
        supervise(World(RUNNING, RUNNING, JobsError("refused")))


def test_what_another_sent_is_followed():
    class Busy(World):
        def all(self):
            return [DONE, replace(RUNNING, name="sskt-a-2")]

    code, ears = supervise(world := Busy(DONE))
    assert (code, world.sent) == (0, [])
    assert ears.notes == ["sskt-a-2: runs already on http://head"]


def test_a_follower_starts_by_looking():
    code, ears = supervise(world := World(RUNNING, RUNNING, DONE, logs=[["one\n"]]), order=None)
    assert (code, world.sent, ears.written) == (0, [], ["one\n"])


def test_over_real_connections_that_break_every_line_comes_once(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    dashboard = Dashboard()
    dashboard.job("sskt-a", "SUCCEEDED")
    dashboard.log, dashboard.cuts = "".join(f"line {number}\n" for number in range(500)), [40, 0, 41, 900]
    states = iter(["RUNNING"] * 5)

    class Ending(Jobs):
        """Whose job has ended when its log was told whole."""

        def get(self, name):
            dashboard.job("sskt-a", "RUNNING" if dashboard.cuts else next(states, "SUCCEEDED"))
            return super().get(name)

    with serving(dashboard) as address:
        code, ears = supervise(Ending(address), order=None)
    assert code == 0
    assert "".join(ears.written) == dashboard.log


def test_cancelling_waits_for_the_end_and_says_what_stays():
    ears = Ears()
    world = World(RUNNING, replace(RUNNING, state=State.CANCELLED))
    assert cancel(world, RUNNING, outlet=ears) == 0
    assert world.stopped == ["sskt-a"]
    assert ears.notes == [
        "sskt-a: cancelled; what is finished is kept: submit it again, and it goes on from what is finished"
    ]


def test_cancelling_what_has_ended_or_does_not_end():
    ears = Ears()
    world = World(DONE)
    assert cancel(world, DONE, outlet=ears) == 0
    assert (world.stopped, ears.notes[0].startswith("sskt-a: succeeded; ")) == ([], True)
    assert cancel(World(None), RUNNING, outlet=ears) == 0
    assert "gone with its cluster" in ears.notes[-1]
    assert cancel(World(RUNNING), RUNNING, outlet=ears) == 1
    assert "running 60 s after it was told to stop" in ears.notes[-1]


def test_decisions_are_values():
    assert decide(RUNNING, SoFar(), LIMITS) == Decision(do=Do.FOLLOW)
