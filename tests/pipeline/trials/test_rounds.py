"""Rounds of a sweep, with runners that only say how trials end."""

import json
import threading
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from cluster.resources import Resources
from cluster.storage import open_storage
from pipeline.canonical import seal
from pipeline.trials import rounds
from pipeline.trials.attempts import Ended, trial_claim
from pipeline.trials.rounds import Rounds, roomier, wait_for_others
from pipeline.trials.runners import Demand
from pipeline.trials.tuning import Fixed

FOUR = Demand(need=Resources(cpus=1), at_once=4)


@dataclass(frozen=True)
class Trial:
    run_key: str


class Script:
    """A runner that ends trials as written down: states by run key, one a round, the last for ever."""

    def __init__(self, **states):
        self.states = states
        self.calls = []

    def __call__(self, supply, demand, tell):
        handed = []
        while supply.left:
            planned = supply.next()
            handed.append(planned.run_key)
            left = self.states[planned.run_key]
            state = left.pop(0) if len(left) > 1 else left[0]
            ended = Ended(planned=planned, state=state, reason="no memory" if state == "starved" else "")
            supply.learn(ended)
            tell(ended)
        self.calls.append((demand.at_once, handed))


class Learning(Fixed):
    def __init__(self, trials):
        super().__init__(trials)
        self.heard = []

    def learn(self, ended):
        self.heard.append((ended.planned.run_key, ended.state))


@pytest.fixture
def storage(tmp_path):
    return open_storage(str(tmp_path))


def go(storage, script, keys, demand=FOUR):
    entered, said, supply = [], [], Learning([Trial(key) for key in keys])
    Rounds(storage=storage, run=script, nodes=lambda: [Resources(cpus=4)], enter=entered.append, say=said.append).go(
        supply, demand
    )
    return {ended.planned.run_key: ended for ended in entered}, said, supply.heard


def result(storage, key):
    content = {"validation": {"accuracy": 80.0}, "metric": "accuracy", "history": [1, 2], "seconds": 9.0}
    storage.write(f"results/{key}.json", json.dumps(content).encode())


def test_what_ends_well_or_badly_has_ended(storage):
    entered, said, heard = go(storage, Script(a=["done"], b=["failed"], c=["stopped"]), "abc")
    assert {key: ended.state for key, ended in entered.items()} == {"a": "done", "b": "failed", "c": "stopped"}
    assert said == []
    assert heard == [("a", "done"), ("b", "failed"), ("c", "stopped")]


def test_what_ran_out_of_memory_runs_again_with_half_as_many_beside_it(storage):
    script = Script(a=["starved", "starved", "done"], b=["starved", "done"], c=["done"])
    entered, said, heard = go(storage, script, "abc")
    assert script.calls == [(4, ["a", "b", "c"]), (2, ["a", "b"]), (1, ["a"])]
    assert {ended.state for ended in entered.values()} == {"done"}
    assert said == [
        "sweep   2 trials ran out of memory with 4 side by side: again with 2",
        "sweep   1 trials ran out of memory with 2 side by side: again with 1",
    ]
    assert heard[-1] == ("a", "done")


def test_what_runs_out_of_memory_alone_has_failed(storage):
    script = Script(a=["starved"])
    entered, _, _ = go(storage, script, "a")
    assert [at_once for at_once, _ in script.calls] == [4, 2, 1]
    assert (entered["a"].state, entered["a"].reason) == ("failed", "out of memory with nothing beside it: no memory")


def test_what_another_run_has_finished_meanwhile_is_found(storage):
    result(storage, "a")
    entered, said, _ = go(storage, Script(a=["busy"], b=["done"]), "ab")
    assert (entered["a"].state, entered["a"].score, entered["a"].epoch, entered["a"].seconds) == ("done", 80.0, 2, 0)
    assert said == ["sweep   waiting for 1 trials that another run is training"]


def test_what_another_run_gave_up_is_run_here(storage):
    script = Script(a=["busy", "done"])
    entered, _, _ = go(storage, script, "a")
    assert [handed for _, handed in script.calls] == [["a"], ["a"]]
    assert entered["a"].state == "done"


def test_the_starved_go_on_before_the_busy_are_waited_for(storage):
    storage.write(trial_claim("a"), seal({"builder": "other", "beat": 0, "place": "elsewhere", "pid": 1}))
    script = Script(a=["busy", "done"], b=["starved", "done"])
    entered, said, _ = go(storage, script, "ab")
    assert script.calls[1] == (2, ["b", "a"])
    assert len(entered) == 2
    assert not any("waiting" in line for line in said)


def test_a_living_claim_is_waited_for(storage, monkeypatch):
    monkeypatch.setattr(rounds, "LOOK_SECONDS", 0.02)
    key = trial_claim("a")
    storage.write(key, seal({"builder": "other", "beat": 0, "place": "elsewhere", "pid": 1}))

    def finish():
        time.sleep(0.3)
        result(storage, "a")
        storage.delete(key)

    thread = threading.Thread(target=finish)
    thread.start()
    began = time.monotonic()
    assert list(wait_for_others([Trial("a")], storage)) == ["a"]
    assert time.monotonic() - began > 0.25
    thread.join()


@pytest.mark.parametrize(
    ("gpus", "at_once", "total", "expected"),
    [
        (0, 4, 0, (0, 2)),
        (0, 3, 0, (0, 1)),
        (0, 1, 0, None),
        (0.25, 8, 2, (0.5, 4)),
        (0.4, 4, 2, (0.8, 2)),
        (0.6, 3, 3, (1.0, 1)),
        (1, 8, 8, None),
        (0.25, 1, 1, None),
    ],
)
def test_more_room_is_half_as_many_and_more_of_the_device(gpus, at_once, total, expected):
    demand = Demand(need=Resources(cpus=1, gpus=gpus), at_once=at_once)
    wider = roomier(demand, lambda: [Resources(cpus=64, gpus=total)])
    assert (wider and (wider.need.gpus, wider.at_once)) == expected


def unknown():
    raise AssertionError("without Ray nobody knows the nodes, and nobody has to")


def test_more_room_is_first_half_as_many_in_a_process(storage):
    five = Demand(need=Resources(cpus=1), at_once=2, lanes=5)
    assert roomier(five, unknown) == Demand(need=Resources(cpus=1), at_once=2, lanes=2)
    script = Script(a=["starved", "starved", "starved", "done"], b=["starved", "done"])
    _, said, _ = go(storage, script, "ab", five)
    assert said == [
        "sweep   2 trials ran out of memory, or their process died, with up to 5 in one: again with 2",
        "sweep   1 trials ran out of memory, or their process died, with up to 2 in one: again with 1",
        "sweep   1 trials ran out of memory with 2 side by side: again with 1",
    ]
    assert script.calls == [(2, ["a", "b"]), (2, ["a", "b"]), (2, ["a"]), (1, ["a"])]


def test_what_leaves_its_node_is_told_of_and_has_not_ended(storage):
    planned = SimpleNamespace(run_key="a", trial=SimpleNamespace(label="scratch", seed=1))

    def run(supply, demand, tell):
        supply.next()
        for state in ("leaving", "leaving", "done"):
            tell(Ended(planned=planned, state=state, reason="10.0.0.2, which goes"))

    entered, said = [], []
    nodes = [[Resources(cpus=1)], []]
    Rounds(storage=storage, run=run, nodes=lambda: nodes.pop(0), enter=entered.append, say=said.append).go(
        Fixed([planned]), FOUR
    )
    assert [ended.state for ended in entered] == ["done"]
    assert said == [
        "sweep   scratch, seed 1, leaves 10.0.0.2, which goes; it goes on elsewhere",
        "sweep   scratch, seed 1, leaves 10.0.0.2, which goes; no other node can hold it: it waits for one",
    ]
