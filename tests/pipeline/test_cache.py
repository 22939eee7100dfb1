import numpy as np
import pytest
import torch

from pipeline.cache import ensure_caches
from pipeline.experiment import load_experiment
from pipeline.labels import load_manifest, read_cache, record_key, shard_key
from pipeline.packed import read_packed
from pipeline.stages import Stages
from sskt.errors import SsktError
from sskt.views import TURN
from tests import fragile

pytestmark = pytest.mark.usefixtures("ray_session")


def logits_of(plan):
    return {name: {"logits": specs["logits"]} for name, specs in plan.caches.items()}


@pytest.fixture
def prepared(experiment_file):
    stages = Stages(load_experiment(str(experiment_file), changes=["cache.encoding=fp32"]), lambda line: None)
    return stages.pack(), stages.storage


def test_the_cache_holds_what_the_source_says_of_every_view(prepared):
    plan, storage = prepared
    spec = plan.caches["wise"]["logits"]
    outcome = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    assert outcome.passes == spec.rows * spec.view_count == outcome.manifests["logits"].passes
    cached = read_cache(storage, spec, outcome.manifests["logits"]).view(np.float32)
    images = torch.from_numpy(read_packed(plan.packed, storage).images)
    for sample, view in ((0, 0), (1, 2), (63, 1), (64, 0), (spec.rows - 1, 2)):
        ids, views = torch.tensor([sample]), torch.tensor([view])
        seen = plan.recipe.apply(images[ids], ids=ids, views=views)
        alone = plan.sources["wise"].outputs(seen, ("logits",))["logits"][0].numpy()
        np.testing.assert_allclose(cached[sample, view], alone, atol=1e-5)


def test_what_is_there_is_found_and_what_is_not_is_made(prepared):
    plan, storage = prepared
    spec = plan.caches["wise"]["logits"]
    first = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    again = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    assert (again.passes, again.manifests["logits"]) == (0, first.manifests["logits"])
    storage.delete(shard_key(spec, 1))
    storage.delete(record_key(spec, 1))
    storage.delete(f"{spec.prefix}/manifest.json")
    repaired = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    assert repaired.passes == len(spec.id_range(1)) * spec.view_count
    assert repaired.manifests["logits"].content == first.manifests["logits"].content


def test_a_damaged_shard_alone_is_made_again(prepared):
    plan, storage = prepared
    spec = plan.caches["wise"]["logits"]
    first = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    data = bytearray(storage.read(shard_key(spec, 0)))
    data[len(data) // 2] ^= 4
    storage.write(shard_key(spec, 0), bytes(data))
    repaired = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    assert repaired.passes == len(spec.id_range(0)) * spec.view_count
    assert repaired.manifests["logits"].content == first.manifests["logits"].content
    (damage,) = repaired.repaired
    assert damage.startswith(f"cache {spec.id}, shard 0: sha256 differs from its record")
    assert load_manifest(storage, spec) == repaired.manifests["logits"]


def test_another_output_leaves_what_exists_and_both_can_come_from_one_pass(prepared, tmp_path):
    plan, storage = prepared
    spec = plan.caches["wise"]["logits"]
    views = spec.rows * spec.view_count
    wanted = {"wise": {output: plan.caches["wise"][output] for output in ("logits", "embedding")}}
    first = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    written = (tmp_path / "store" / shard_key(spec, 0)).stat().st_mtime_ns
    both = ensure_caches(plan, storage, wanted=wanted)["wise"]
    assert both.passes == views
    assert (tmp_path / "store" / shard_key(spec, 0)).stat().st_mtime_ns == written
    assert both.manifests["logits"] == first.manifests["logits"]
    for lost in wanted["wise"].values():
        storage.delete(f"{lost.prefix}/manifest.json")
        for shard in range(lost.shards):
            storage.delete(record_key(lost, shard))
    together = ensure_caches(plan, storage, wanted=wanted)["wise"]
    assert together.passes == views
    contents = {output: manifest.content for output, manifest in both.manifests.items()}
    assert {output: manifest.content for output, manifest in together.manifests.items()} == contents
    embedding = read_cache(storage, plan.caches["wise"]["embedding"], together.manifests["embedding"])
    assert embedding.shape == (spec.rows, spec.view_count, 4 * plan.sources["wise"].embedding_dim)


def test_turned_views_are_a_cache_of_their_own(prepared):
    plan, storage = prepared
    specs, source = plan.caches["wise"], plan.sources["wise"]
    upright, turned = specs["embedding"], specs["turned embedding"]
    wanted = {"wise": {name: specs[name] for name in ("embedding", "turned embedding", "turned logits")}}
    outcome = ensure_caches(plan, storage, wanted=wanted)["wise"]
    views = upright.rows * upright.view_count
    assert outcome.passes == views + 3 * views, "two outputs of the same views come from one pass"
    stored = {name: read_cache(storage, specs[name], manifest) for name, manifest in outcome.manifests.items()}
    assert stored["embedding"].shape[:2] == (upright.rows, 3)
    assert stored["turned embedding"].shape[:2] == (upright.rows, 9)
    images = torch.from_numpy(read_packed(plan.packed, storage).images)
    for sample, place, quarters, view in ((0, 0, 1, 0), (70, 2, 1, 2), (70, 4, 2, 1), (upright.rows - 1, 8, 3, 2)):
        ids, views = torch.tensor([sample]), torch.tensor([quarters * TURN + view])
        seen = plan.recipe.apply_turned(images[ids], ids=ids, views=views)
        alone = source.outputs(seen, ("embedding",))["embedding"][0].numpy()
        np.testing.assert_allclose(stored["turned embedding"].view(np.float32)[sample, place], alone, atol=1e-5)
    storage.delete(record_key(turned, 1))
    storage.delete(f"{turned.prefix}/manifest.json")
    repaired = ensure_caches(plan, storage, wanted=wanted)["wise"]
    assert repaired.passes == len(turned.id_range(1)) * 9
    assert repaired.manifests["turned embedding"].content == outcome.manifests["turned embedding"].content


def test_no_source_no_cache(prepared):
    plan, storage = prepared
    assert ensure_caches(plan, storage, wanted={}) == {}


def fragile_plan(experiment_file, tmp_path, function, *, lives):
    """The experiment with a source that dies so many times."""
    (tmp_path / "lives").mkdir()
    for number in range(lives):
        (tmp_path / "lives" / f"life-{number}").touch()
    network = getattr(fragile, function)(classes=4, lives=str(tmp_path / "lives"))
    torch.save(network.state_dict(), tmp_path / "fragile.pt")
    source = (
        f"{{architecture: 'tests.fragile:{function}', weights: {tmp_path}/fragile.pt, classes: 4, "
        f"options: {{lives: {tmp_path}/lives}}, input: {{mean: [0.5], std: [0.5]}}}}"
    )
    lines = experiment_file.read_text().splitlines()
    experiment_file.write_text("\n".join(f"  wise: {source}" if "  wise:" in line else line for line in lines))
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    return stages.pack(), stages.storage


def test_a_worker_that_dies_is_replaced(experiment_file, tmp_path):
    plan, storage = fragile_plan(experiment_file, tmp_path, "dying", lives=1)
    outcome = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    assert list((tmp_path / "lives").iterdir()) == []
    assert [record.shard for record in outcome.manifests["logits"].shards] == list(
        range(plan.caches["wise"]["logits"].shards)
    )


def test_workers_that_always_die_end_the_stage_with_its_reason(experiment_file, tmp_path):
    plan, storage = fragile_plan(experiment_file, tmp_path, "dying", lives=20)
    with pytest.raises(SsktError, match=r"cache of source 'wise': workers died 3 times, shards \[0, 1\] are missing"):
        ensure_caches(plan, storage, wanted=logits_of(plan))


def test_a_source_that_fails_ends_the_stage_with_its_reason(experiment_file, tmp_path):
    plan, storage = fragile_plan(experiment_file, tmp_path, "broken", lives=0)
    with pytest.raises(SsktError, match=r"cache of source 'wise': shard \d: ArithmeticError: the network is broken"):
        ensure_caches(plan, storage, wanted=logits_of(plan))
