"""Sources that compute in fewer bits: what that changes is measured once, said, and held against the budget."""

import dataclasses

import pytest
import torch

from pipeline.caches.rounding import Rounding
from pipeline.caches.segments import read_cache, require_cache
from pipeline.packing.packed import read_packed
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from sskt.errors import DamagedError, InputError
from sskt.fidelity import fidelity
from tests.pipeline.caches.test_pilot import LOOSE, many_classes

SHORT = "sources.wise.precision=bfloat16"


def stages_of(file, *changes):
    said: list[str] = []
    return Stages(load_experiment(str(file), changes=changes), said.append), said


def pilot_lines(said):
    return [line for line in said if line.startswith("pilot")]


def test_beyond_the_budget_it_is_refused_before_anything_is_cached(experiment_file):
    stages, said = stages_of(many_classes(experiment_file, sharpness=20), SHORT)
    with pytest.raises(InputError) as refused:
        stages.pack()
    assert str(refused.value).startswith(
        "sources.wise.precision is 'bfloat16', which changes what it says by more than cache.budget allows ("
    )
    assert "agreement 0.9" in str(refused.value)
    assert ", allowed 1)" in str(refused.value)
    assert str(refused.value).endswith("it has to be 'float32', or the budget another")
    assert pilot_lines(said) == []
    assert list(stages.storage.keys("caches")) == []


def test_within_the_budget_it_is_said_measured_once_and_a_source_of_its_own(experiment_file):
    many_classes(experiment_file)
    stages, said = stages_of(experiment_file, SHORT, LOOSE)
    plan = stages.pack()
    (line,) = pilot_lines(said)
    images = torch.from_numpy(read_packed(plan.packed, stages.storage).images)[: plan.packed.pool]
    ids = torch.arange(plan.packed.pool)
    seen = plan.recipe.apply(images, ids=ids, views=torch.zeros_like(ids))
    short, exact = (
        stages_of(experiment_file, *changes)[0].pack().sources["wise"].outputs(seen, ("logits",))["logits"]
        for changes in ((SHORT, LOOSE), ())
    )
    assert not torch.equal(short, exact)
    torch.testing.assert_close(short, exact, rtol=0.1, atol=0.05)
    assert line == f"pilot   wise in bfloat16: {fidelity(exact, short).words()}"
    again, repeated = stages_of(experiment_file, SHORT, LOOSE)
    plan = again.pack()
    assert pilot_lines(repeated) == [line]
    assert plan.sources["wise"].passes == 0
    plain = stages_of(experiment_file)[0].pack()
    assert "precision" not in plain.sources["wise"].identity()
    assert plan.caches["wise"]["logits"].id != plain.caches["wise"]["logits"].id
    assert plan.trials[-1].run_key != plain.trials[-1].run_key


@pytest.mark.usefixtures("ray_session")
def test_workers_compute_in_it(experiment_file):
    stages, _ = stages_of(many_classes(experiment_file), SHORT, LOOSE, "cache.encoding=fp32")
    plan = stages.pack()
    stages.cache(plan)
    spec = plan.caches["wise"]["logits"]
    stored = read_cache(stages.storage, require_cache(stages.storage, spec, source="wise"))[:, 0]
    logits = spec.labels.encoder.decode(torch.from_numpy(stored.copy()), spec.labels.width)
    images = torch.from_numpy(read_packed(plan.packed, stages.storage).images)[: plan.packed.pool]
    ids = torch.arange(len(images))
    seen = plan.recipe.apply(images, ids=ids, views=torch.zeros_like(ids))
    short = plan.sources["wise"].outputs(seen, ("logits",))["logits"]
    with plan.sources["wise"].exact():
        exact = plan.sources["wise"].outputs(seen, ("logits",))["logits"]
    assert (logits - short).abs().mean() < 0.1 * (logits - exact).abs().mean()


def test_a_damaged_answer_is_named(experiment_file):
    stages, _ = stages_of(experiment_file, SHORT, LOOSE)
    plan = stages.pack()
    rounding = Rounding(source=plan.sources["wise"], recipe=plan.recipe, packed=plan.packed)
    assert dataclasses.asdict(rounding.found(stages.storage))["agreement"] > 0.5
    stages.storage.write(rounding.key, b"{}")
    with pytest.raises(DamagedError, match=r"pilots/.* is damaged .*; delete it to measure again"):
        rounding.found(stages.storage)
