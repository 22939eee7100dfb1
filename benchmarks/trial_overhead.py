"""What running a trial costs beyond its training: our packed runner, a bare pool of actors, and the idiomatic pattern.

    python -m benchmarks.trial_overhead

All three run the same trials, whose training is next to nothing (one step on 32 digits): by `run_packed`, in the
actors of Ray Tune; by two plain Ray actors that are handed the same trials; and by what Ray's guides show, a Tune
function that starts a TorchTrainer of one worker for each. What a trial does by itself (claim, checkpoint, evaluation,
result) is in all of them. Prints wall seconds per trial, two side by side; a first round, which starts processes, is
not counted.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import ray
from ray.util import ActorPool

from cluster.resources import Resources
from cluster.session import start_session
from pipeline.planning.experiment import load_experiment
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.stages import Stages
from pipeline.trials.runners import Demand, run_distributed, run_packed, run_plain
from pipeline.trials.trials import Materials, gather_materials
from pipeline.trials.tuning import Fixed

MANY, FEW = 200, 4
EXPERIMENT = """
storage: {folder}/store
dataset: {{kind: digits, image_size: 8}}
target: {{architecture: small_cnn, options: {{width: 2}}}}
training: {{epochs: 1, steps_per_epoch: 1, batch_size: 32}}
methods: [{{method: scratch}}]
seeds: {seeds}
"""
DEMAND = Demand(need=Resources(cpus=1), at_once=2)

Runner = Callable[[list[PlannedTrial]], None]


@ray.remote(num_cpus=1)
class Worker:
    """A plain actor."""

    def __init__(self, materials: Materials) -> None:
        self.materials = materials

    def run(self, planned: PlannedTrial) -> str:
        """Run a trial as the packed runner's actors do."""
        return run_plain(planned, self.materials, DEMAND).state


def packed(materials: Materials) -> Runner:
    """Our runner."""
    return lambda trials: run_packed(Fixed(trials), DEMAND, lambda ended: None, materials=materials)


def bare(materials: Materials) -> Runner:
    """Two actors and nothing else."""
    shared = ray.put(materials)
    pool = ActorPool([Worker.remote(shared) for _ in range(2)])
    return lambda trials: list(pool.map_unordered(lambda actor, planned: actor.run.remote(planned), trials))  # type: ignore[func-returns-value]


def idiomatic(materials: Materials) -> Runner:
    """A Tune function that starts a TorchTrainer."""
    return lambda trials: run_distributed(Fixed(trials), DEMAND, lambda ended: None, materials=materials)


def prepare(folder: str) -> tuple[Plan, Materials]:
    """Pack the digits and plan trials enough for all."""
    file = Path(folder) / "overhead.yaml"
    file.write_text(EXPERIMENT.format(folder=folder, seeds=list(range(2 * MANY + 40))))
    stages = Stages(load_experiment(str(file)), lambda line: None)
    plan = stages.pack()
    return plan, gather_materials(plan, stages.storage, plan.trials)


def measure(runner: Runner, first: list[PlannedTrial], trials: list[PlannedTrial]) -> float:
    """Wall seconds per trial, after a first round."""
    runner(first)
    began = time.perf_counter()
    runner(trials)
    return (time.perf_counter() - began) / len(trials)


def main() -> None:
    """Measure all three, one after the other in one session."""
    with tempfile.TemporaryDirectory() as folder:
        plan, materials = prepare(folder)
        start_session()
        trials = iter(plan.trials)
        take = lambda count: [next(trials) for _ in range(count)]  # noqa: E731
        alone_began = time.perf_counter()
        for planned in take(10):
            attempt_state = run_plain(planned, materials, DEMAND).state
            assert attempt_state == "done"
        alone = (time.perf_counter() - alone_began) / 10
        pool = measure(bare(materials), take(4), take(MANY))
        ours = measure(packed(materials), take(4), take(MANY))
        usual = measure(idiomatic(materials), take(2), take(FEW))
        print(f"in this process      {alone:7.3f} s per trial, one after the other")
        print(f"bare actor pool      {pool:7.3f} s per trial   ({MANY} trials)")
        print(f"packed runner        {ours:7.3f} s per trial   ({MANY} trials)")
        print(f"Tune + TorchTrainer  {usual:7.3f} s per trial   ({FEW} trials)")
        print(f"packed beyond pool   {ours - pool:7.3f} s per trial")
        print(f"Tune + TorchTrainer takes {(usual - pool) / (ours - pool):.0f} times as much beyond the pool")


if __name__ == "__main__":
    main()
