import pytest

from pipeline.forecasts.figures import workload
from pipeline.forecasts.machines import Cluster, StorageDescription, Supposed
from pipeline.forecasts.rates import Pace, Rates, SourcePace
from pipeline.forecasts.simulation import Piece
from pipeline.forecasts.work import kind_of, trainings
from pipeline.forecasts.workload import of_size, stages_of
from tests.pipeline.forecasts.test_forecast import POOL, VIEWS, packed
from tests.pipeline.trials.test_trials import prepared

MACHINE = Cluster(cpus=2, memory_gb=8)
PACE = Pace(step=0.5, evaluation=0.2, checkpoint=0.1, trial=2.0, checkpoint_bytes=1000)


def rates_of(plan, **more):
    paces = {kind_of(planned.spec["trial"]): PACE for planned in plan.trials}
    source = SourcePace(view=0.01, answer=0.008, shard=0.05, batches={8: 0.01, 32: 0.008})
    return Rates(paces=paces, sources=dict.fromkeys(plan.sources, source), **more)


def stages(plan, storage, *, cluster=MACHINE, cached=True, **more):
    work, _ = workload(plan, storage, cluster)
    return stages_of(work, rates_of(plan, **more), cluster, plan=plan, nodes=cluster.nodes[0], cached=cached)


def test_pieces_take_what_their_parts_take(experiment_file):
    plan, storage = packed(experiment_file)
    making, training = stages(plan, storage, session=5.0, cache_start=3.0, sweep_start=4.0, turn=0.3)
    assert sum(piece.lap for piece in making.pieces) == pytest.approx(POOL * VIEWS * 0.01)
    assert {piece.around for piece in making.pieces} == {0.05}
    assert (making.start, training.start, making.places, training.places) == (8.0, 4.0, 2, 2)
    assert all(piece == Piece(laps=3, lap=pytest.approx(4 * 0.5 + 0.3), around=2.0) for piece in training.pieces)
    assert (len(training.pieces), training.turn, training.save_bytes) == (4, 0.3, 1000)


def test_live_sources_answer_in_every_step_and_nothing_is_cached(experiment_file):
    plan, storage = packed(experiment_file)
    making, training = stages(plan, storage, cached=False, session=5.0)
    assert making.pieces == []
    assert training.start == 5.0
    laps = [piece.lap for piece in training.pieces]
    assert laps[0] == pytest.approx(2.3)
    assert laps[2] == pytest.approx(2.3 + 4 * 32 * 0.008)


def test_where_caches_are_whole_only_trials_are_left(experiment_file):
    plan, storage = prepared(experiment_file)
    making, training = stages(plan, storage, session=5.0, sweep_start=1.0)
    assert making.pieces == []
    assert training.start == 6.0


def test_a_faster_machine_is_faster_in_all_but_its_start(experiment_file):
    plan, storage = packed(experiment_file)
    fast = stages(plan, storage, cluster=Cluster(cpus=2, memory_gb=8, speed=4.0))[1]
    assert all(piece == Piece(laps=3, lap=pytest.approx(2.3 / 4), around=0.5) for piece in fast.pieces)


def test_what_trials_share_is_read_and_handed_out(experiment_file):
    plan, storage = packed(experiment_file)
    cluster = Cluster(
        cpus=2, memory_gb=8, nodes=(16,), network_mb_per_second=2.0, storage=StorageDescription(mb_per_second=1.0)
    )
    work, _ = workload(plan, storage, cluster)
    assert work.node_bytes == plan.packed.rows * (12 * 12 + 8 + 1) + POOL * VIEWS * 8
    assert stages(plan, storage, cluster=cluster)[1].start == pytest.approx(work.node_bytes / 1e6 * (1 + 4 / 2))


def test_passes_are_those_of_caches_or_of_every_step(experiment_file):
    plan, storage = packed(experiment_file)
    work, found = workload(plan, storage, MACHINE)
    assert found == 0
    assert work.passes(cached=True) == POOL * VIEWS
    assert work.passes(cached=False) == 2 * 3 * 4 * 32
    live, storage = packed(experiment_file, "sources.wise.live=true")
    work, _ = workload(live, storage, MACHINE)
    assert work.passes(cached=True) == work.passes(cached=False) == 2 * 3 * 4 * 32


def test_another_size_is_supposed(experiment_file):
    plan, storage = packed(experiment_file, "training.steps_per_epoch=null", "training.labels_per_class=null")
    left = trainings(plan, [(planned, 1.0) for planned in plan.trials])
    (one, *_) = of_size(left, trials=10_000, growth=10.0)
    assert one.steps == 10 * left[0].steps
    assert one.count == 2500
    for trials in (1, 3, 7, 10_001):
        assert sum(one.count for one in of_size(left, trials=trials, growth=1.0)) == trials
    big = Cluster(cpus=2, memory_gb=8, suppose=Supposed(images=1000 * POOL, trials=8))
    work, _ = workload(plan, storage, big)
    small, _ = workload(plan, storage, MACHINE)
    assert work.trials == 8
    assert work.passes(cached=True) == 1000 * small.passes(cached=True)
    assert work.node_bytes == pytest.approx(1000 * small.node_bytes, rel=1e-6)
    fixed = of_size(trainings(packed(experiment_file)[0], [(plan.trials[0], 1.0)]), trials=None, growth=10.0)
    assert fixed[0].count == 1
