"""Leaving a node: all processes of a training at the same step, whatever their clocks say."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cluster.notices import ASK_SECONDS
from cluster.resources import Resources
from pipeline.trials.attempts import Ended
from pipeline.trials.leaving import Agreed, leaving_line

CPU = torch.device("cpu")


class Peers:
    """Threads that stand for processes: each hears the tensors of all, as by an all-gather."""

    def __init__(self, count: int) -> None:
        self.rows = [torch.empty(0)] * count
        self.barrier = threading.Barrier(count, timeout=10)
        self.exchanges = 0

    def gather(self, rank: int, own: torch.Tensor) -> torch.Tensor:
        self.rows[rank] = own
        self.barrier.wait()
        told = torch.stack(self.rows)
        self.exchanges += rank == 0
        self.barrier.wait()
        return told


def train(peers: Peers, rank: int, ends: dict, *, steps: np.ndarray, notice: float) -> None:
    """Take steps of so many seconds each on a clock of one's own, until it is said to leave."""
    passed = [0.0]
    agreed = Agreed(
        lambda: passed[0] >= notice, lambda own: peers.gather(rank, own), device=CPU, clock=lambda: passed[0]
    )
    for number, seconds in enumerate(steps):
        if agreed():
            ends[rank] = (number, passed[0])
            return
        passed[0] += seconds


@pytest.mark.parametrize("seed", range(10))
def test_all_processes_leave_at_the_same_step_soon_after_the_first_notice(seed):
    generator = np.random.default_rng(seed)
    count, pace = int(generator.integers(2, 5)), 10 ** generator.uniform(-3, 0)
    told = int(generator.integers(count))
    peers, ends = Peers(count), {}
    threads = [
        threading.Thread(
            target=train,
            args=(peers, rank, ends),
            kwargs={
                "steps": pace * generator.uniform(0.8, 1.25, size=int(100 / pace)),
                "notice": 20.0 if rank == told else float("inf"),
            },
        )
        for rank in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == count
    assert len({number for number, _ in ends.values()}) == 1
    number, left = ends[told]
    assert 20 <= left <= 20 + 1.6 * ASK_SECONDS + 2 * pace
    assert peers.exchanges <= 2 * left / ASK_SECONDS + 3 or peers.exchanges <= number + 1


def test_a_process_on_its_own_leaves_as_it_is_told():
    passed, given = [0.0], [False]
    agreed = Agreed(lambda: given[0], lambda own: own.unsqueeze(0), device=CPU, clock=lambda: passed[0])
    heard = []
    for number in range(100):
        given[0] = number >= 50
        heard.append(agreed())
        passed[0] += 0.1
    assert not any(heard[:50])
    assert heard.index(True) <= 50 + 1.5 * ASK_SECONDS / 0.1


def ended() -> Ended:
    planned = SimpleNamespace(trial=SimpleNamespace(label="sskt wise", seed=3))
    return Ended(
        planned=planned, state="leaving", reason="10.0.0.2, which goes in 118 s, after 1 epochs and 2 of 9 steps"
    )


@pytest.mark.parametrize(
    ("nodes", "then"),
    [
        ([Resources(cpus=0), Resources(cpus=4, gpus=1)], "it goes on elsewhere"),
        ([Resources(cpus=0), Resources(cpus=4)], "no other node can hold it: it waits for one"),
        ([], "no other node can hold it: it waits for one"),
    ],
)
def test_the_line_says_what_becomes_of_the_trial(nodes, then):
    line = leaving_line(ended(), nodes=nodes, need=Resources(cpus=1, gpus=0.5))
    expected = "sskt wise, seed 3, leaves 10.0.0.2, which goes in 118 s, after 1 epochs and 2 of 9 steps; "
    assert line == expected + then
