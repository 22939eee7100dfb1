"""The simulation against closed forms, a list scheduler, and what has to hold of any cluster."""

import heapq
import itertools
import math
import random
import time

import pytest

from pipeline.forecasts.machines import Fleet, Link
from pipeline.forecasts.simulation import Piece, Stage, simulate
from sskt.errors import InputError


def stage(pieces, *, places=2, **more):
    return Stage(name="sweep", pieces=pieces, places=places, **more)


def some_pieces(count, *, seed=0):
    generator = random.Random(seed)  # noqa: S311
    return [
        Piece(laps=generator.randint(1, 6), lap=generator.uniform(1, 20), around=generator.uniform(0, 5))
        for _ in range(count)
    ]


def seconds_of(piece):
    return piece.laps * piece.lap + piece.around


@pytest.mark.parametrize(("nodes", "places", "count"), [(1, 1, 7), (1, 2, 7), (3, 4, 100), (16, 2, 5)])
def test_alike_pieces_take_as_many_rounds_as_there_are(nodes, places, count):
    pieces = [Piece(laps=3, lap=10, around=2)] * count
    run = simulate([stage(pieces, places=places, start=7)], Fleet(nodes=nodes))
    assert run.seconds == pytest.approx(7 + math.ceil(count / (nodes * places)) * 32)
    assert (run.first, run.done, run.losses) == (7, count, 0)
    assert run.times.start == pytest.approx(7 * nodes * places)


@pytest.mark.parametrize("nodes", [1, 3, 10])
def test_unlike_pieces_end_when_a_list_scheduler_says(nodes):
    pieces = some_pieces(60)
    free = [0.0] * (2 * nodes)
    for piece in pieces:
        heapq.heappush(free, heapq.heappop(free) + seconds_of(piece))
    assert simulate([stage(pieces)], Fleet(nodes=nodes)).seconds == pytest.approx(max(free))


def test_a_driver_that_is_slower_than_its_workers_sets_the_pace():
    run = simulate([stage([Piece(lap=1)] * 400, turn=0.1)], Fleet(nodes=64))
    assert run.seconds == pytest.approx(400 * 0.1 + 1)
    assert run.times.driver > run.times.useful
    quick = simulate([stage([Piece(lap=1)] * 400, turn=0.1)], Fleet(nodes=1))
    assert quick.seconds == pytest.approx(400 * 1.1 / 2, rel=0.01)


def test_requests_take_their_time_and_no_more_than_the_server_answers():
    pieces = [Piece(laps=10, lap=1)] * 4
    slow = simulate(
        [stage(pieces, saves=3, save_bytes=5e6, ends=2)], Fleet(nodes=2), Link(latency=0.1, bytes_per_second=1e7)
    )
    assert slow.seconds == pytest.approx(10 * (1 + 0.3 + 0.5) + 0.2)
    many = [Piece(laps=10, lap=1)] * 200
    limited = simulate([stage(many, saves=3)], Fleet(nodes=100), Link(requests_per_second=100))
    assert limited.seconds == pytest.approx(200 * 10 * 3 / 100, rel=0.05)
    assert limited.times.storage > limited.times.useful


def test_stages_follow_each_other():
    one, two = Stage(name="cache", pieces=[Piece(lap=5)] * 3, places=1, start=2), stage([Piece(lap=1)], start=1)
    run = simulate([one, two, stage([])], Fleet(nodes=3, start_seconds=4))
    assert run.stages == {"cache": 9, "sweep": 2}
    assert (run.seconds, run.first, run.done) == (11, 4, 4)


@pytest.mark.parametrize(("loss", "seed"), list(itertools.product([0, 3, 12], range(3))))
def test_work_is_conserved_and_all_time_accounted_for(loss, seed):
    pieces = some_pieces(200, seed=seed)
    fleet = Fleet(nodes=5, loss_per_hour=loss, replacement_seconds=60, start_seconds=20, seed=seed)
    run = simulate([stage(pieces, turn=0.05, saves=2, ends=3, start=30)], fleet, Link(latency=0.02))
    assert run.done == 200
    assert run.times.useful == pytest.approx(sum(map(seconds_of, pieces)))
    assert run.times.total == pytest.approx(run.seconds * 5 * 2)
    assert all(value > -1e-6 for value in vars(run.times).values())
    assert (run.losses > 0) == (run.times.lost > 1e-6) == (run.times.absent > 0) == (loss > 0)


def test_more_nodes_are_never_slower():
    pieces = some_pieces(300)
    took = [simulate([stage(pieces, turn=0.01)], Fleet(nodes=nodes)).seconds for nodes in (1, 2, 3, 5, 8, 13, 100, 500)]
    assert took == sorted(took, reverse=True)
    assert took[-1] >= max(map(seconds_of, pieces))


def test_losses_cost_time_and_more_of_them_more():
    def mean_seconds(loss):
        runs = [
            simulate([stage(some_pieces(200))], Fleet(nodes=4, loss_per_hour=loss, replacement_seconds=120, seed=seed))
            for seed in range(10)
        ]
        return sum(run.seconds for run in runs) / len(runs)

    took = [mean_seconds(loss) for loss in (0, 1, 4, 12)]
    assert took == sorted(took)
    assert took[-1] > 1.2 * took[0]


def test_what_was_saved_is_not_done_again():
    """One long trial on one place: it takes its laps, and for every loss the absence and less than a lap."""
    piece = Piece(laps=100, lap=60, around=10)
    fleet = Fleet(nodes=1, loss_per_hour=2, replacement_seconds=100, lease=30)
    run = simulate([stage([piece], places=1)], fleet)
    assert run.losses > 0
    least, most = 6010 + 100 * run.losses, 6010 + (100 + 10 + 60) * run.losses
    assert least <= run.seconds <= most
    assert run.times.absent == pytest.approx(100 * run.losses)


def test_nodes_that_live_too_short_for_any_work_are_an_error():
    with pytest.raises(InputError, match="loss_per_hour is 600"):
        simulate([stage([Piece(lap=3600)] * 3)], Fleet(nodes=2, loss_per_hour=600))


def test_the_same_seed_is_the_same_run_and_another_is_not():
    def run(seed):
        return simulate([stage(some_pieces(100))], Fleet(nodes=3, loss_per_hour=5, replacement_seconds=60, seed=seed))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_ten_thousand_trials_on_a_hundred_nodes_take_seconds():
    pieces = [Piece(laps=30, lap=20, around=5)] * 10_000
    fleet = Fleet(nodes=100, loss_per_hour=0.05, replacement_seconds=180)
    began = time.process_time()
    run = simulate(
        [stage(pieces, places=4, turn=0.05, saves=3, ends=12)], fleet, Link(latency=0.03, requests_per_second=3500)
    )
    assert time.process_time() - began < 10
    assert run.done == 10_000
    assert run.losses > 10
    assert run.seconds > 10_000 * 605 / 400
