import os
import re
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from cluster.session import usable_cpus
from pipeline import progress
from pipeline.caches import cache as stage
from pipeline.caches import claims
from pipeline.caches.cache import ensure_caches
from pipeline.caches.claims import LEASE, claim_key, claimed
from pipeline.caches.labels import manifest_key, record_key, shard_key
from pipeline.caches.segments import open_cache, read_cache
from pipeline.caches.shards import ShardWriter, make_shard
from pipeline.canonical import seal, unseal
from pipeline.packing.packed import read_packed
from pipeline.planning import specs
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from sskt.errors import SsktError
from sskt.views import TURN
from tests import fragile
from tests.processes import descendants, start

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
    assert outcome.passes == spec.rows * spec.view_count == outcome.caches["logits"].passes
    cached = read_cache(storage, outcome.caches["logits"]).view(np.float32)
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
    assert (again.passes, again.caches["logits"]) == (0, first.caches["logits"])
    segment = spec.segment(0, 0, spec.view_count)
    storage.delete(shard_key(segment, 1))
    storage.delete(record_key(segment, 1))
    storage.delete(manifest_key(segment))
    repaired = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    assert repaired.passes == len(segment.id_range(1)) * spec.view_count
    assert repaired.caches["logits"].content == first.caches["logits"].content


def test_a_damaged_shard_alone_is_made_again(prepared):
    plan, storage = prepared
    spec = plan.caches["wise"]["logits"]
    first = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    segment = spec.segment(0, 0, spec.view_count)
    data = bytearray(storage.read(shard_key(segment, 0)))
    data[len(data) // 2] ^= 4
    storage.write(shard_key(segment, 0), bytes(data))
    repaired = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    assert repaired.passes == len(segment.id_range(0)) * spec.view_count
    assert repaired.caches["logits"].content == first.caches["logits"].content
    (damage,) = repaired.repaired
    assert damage.startswith(f"cache {spec.id}, views 0..2, shard 0: its checksum differs from its record")
    assert open_cache(storage, spec) == repaired.caches["logits"]
    assert storage.read(f"quarantine/{shard_key(segment, 0)}") == bytes(data)


def test_another_output_leaves_what_exists_and_both_can_come_from_one_pass(prepared, tmp_path):
    plan, storage = prepared
    spec = plan.caches["wise"]["logits"]
    views, segment = spec.rows * spec.view_count, spec.segment(0, 0, spec.view_count)
    wanted = {"wise": {output: plan.caches["wise"][output] for output in ("logits", "embedding")}}
    first = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    written = (tmp_path / "store" / shard_key(segment, 0)).stat().st_mtime_ns
    both = ensure_caches(plan, storage, wanted=wanted)["wise"]
    assert both.passes == views
    assert (tmp_path / "store" / shard_key(segment, 0)).stat().st_mtime_ns == written
    assert both.caches["logits"] == first.caches["logits"]
    for cache in wanted["wise"].values():
        lost = cache.segment(0, 0, cache.view_count)
        storage.delete(manifest_key(lost))
        for shard in range(lost.shards):
            storage.delete(record_key(lost, shard))
    together = ensure_caches(plan, storage, wanted=wanted)["wise"]
    assert together.passes == views
    contents = {output: whole.content for output, whole in both.caches.items()}
    assert {output: whole.content for output, whole in together.caches.items()} == contents
    embedding = read_cache(storage, together.caches["embedding"])
    assert embedding.shape == (spec.rows, spec.view_count, 4 * plan.sources["wise"].embedding_dim)


def test_turned_views_are_a_cache_of_their_own(prepared):
    plan, storage = prepared
    specs, source = plan.caches["wise"], plan.sources["wise"]
    upright, turned = specs["embedding"], specs["turned embedding"]
    wanted = {"wise": {name: specs[name] for name in ("embedding", "turned embedding", "turned logits")}}
    outcome = ensure_caches(plan, storage, wanted=wanted)["wise"]
    views = upright.rows * upright.view_count
    assert outcome.passes == views + 3 * views, "two outputs of the same views come from one pass"
    stored = {name: read_cache(storage, whole) for name, whole in outcome.caches.items()}
    assert stored["embedding"].shape[:2] == (upright.rows, 3)
    assert stored["turned embedding"].shape[:2] == (upright.rows, 9)
    images = torch.from_numpy(read_packed(plan.packed, storage).images)
    for sample, place, quarters, view in ((0, 0, 1, 0), (70, 2, 1, 2), (70, 4, 2, 1), (upright.rows - 1, 8, 3, 2)):
        ids, views = torch.tensor([sample]), torch.tensor([quarters * TURN + view])
        seen = plan.recipe.apply_turned(images[ids], ids=ids, views=views)
        alone = source.outputs(seen, ("embedding",))["embedding"][0].numpy()
        np.testing.assert_allclose(stored["turned embedding"].view(np.float32)[sample, place], alone, atol=1e-5)
    segment = turned.segment(0, 0, turned.view_count)
    storage.delete(record_key(segment, 1))
    storage.delete(manifest_key(segment))
    repaired = ensure_caches(plan, storage, wanted=wanted)["wise"]
    assert repaired.passes == len(segment.id_range(1)) * 9
    assert repaired.caches["turned embedding"].content == outcome.caches["turned embedding"].content


def test_more_views_cost_only_the_views_that_are_new(prepared):
    """And end in the same bytes as if all had been made at once."""
    plan, storage = prepared
    wider = replace(plan.caches["wise"]["logits"], view_count=5)
    few = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    more = ensure_caches(plan, storage, wanted={"wise": {"logits": wider}})["wise"]
    assert (few.passes, more.passes) == (wider.rows * 3, wider.rows * 2)
    for key in list(storage.keys("caches")):
        storage.delete(key)
    at_once = ensure_caches(plan, storage, wanted={"wise": {"logits": wider}})["wise"]
    assert at_once.passes == wider.rows * 5
    assert at_once.caches["logits"].content == more.caches["logits"].content
    fewer = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    assert (fewer.passes, fewer.caches["logits"].content) == (0, few.caches["logits"].content)


def test_a_damaged_manifest_is_written_again_from_the_records(prepared):
    plan, storage = prepared
    first = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    ((segment, _),) = first.caches["logits"].parts
    data = storage.read(manifest_key(segment))
    storage.write(manifest_key(segment), data[:-20])
    again = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    assert again.passes == 0
    assert "manifest.json is damaged" in again.repaired[0]
    assert storage.read(manifest_key(segment)) == data


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
    ((segment, manifest),) = outcome.caches["logits"].parts
    assert [record.shard for record in manifest.shards] == list(range(segment.shards))


@pytest.mark.slow
def test_workers_that_always_die_end_the_stage_with_its_reason(experiment_file, tmp_path):
    plan, storage = fragile_plan(experiment_file, tmp_path, "dying", lives=20)
    with pytest.raises(SsktError, match=r"cache: workers died 3 times, shards \[0, 1\] are missing"):
        ensure_caches(plan, storage, wanted=logits_of(plan))


def test_machines_may_be_lost_as_often_as_others_get_on(prepared, monkeypatch):
    plan, storage = prepared
    monkeypatch.setattr(specs, "SMALLEST_SHARD", 16)
    rounds = []

    def make_one(job, work, free, **_):
        """Its worker is lost with its machine before it can tell."""
        (*_, shard), prefixes = next(iter(free.items()))
        ShardWriter(job)({"shard": shard, "prefixes": prefixes})
        rounds.append(shard)
        return "its machine was lost"

    monkeypatch.setattr(stage, "_make_free", make_one)
    outcome = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    ((segment, _),) = outcome.caches["logits"].parts
    assert rounds == list(range(segment.shards))
    assert len(rounds) > 2 * stage.TRIES


def test_a_source_that_fails_ends_the_stage_with_its_reason(experiment_file, tmp_path):
    plan, storage = fragile_plan(experiment_file, tmp_path, "broken", lives=0)
    with pytest.raises(SsktError, match=r"cache: source 'wise', shard \d: ArithmeticError: the network is broken"):
        ensure_caches(plan, storage, wanted=logits_of(plan))


def forget(storage, segment, *shards):
    """Remove shards that are there, and what says that the segment is whole."""
    storage.delete(manifest_key(segment))
    for shard in shards:
        storage.delete(shard_key(segment, shard))
        storage.delete(record_key(segment, shard))


def leave_claim(storage, segment, shard, *, place, pid):
    """The claim of a builder that was killed."""
    storage.write(claim_key(segment, shard), seal({"builder": "killed", "beat": 3, "place": place, "pid": pid}))


@pytest.fixture
def here(prepared, monkeypatch):
    """Shards are made in this process, in their order: what is tested is who makes which, not how workers are fed."""

    def make_free(job, work, free, **_):
        for (*_, shard), prefixes in free.items():
            for prefix, record in make_shard(prepared[0].sources, job, shard=shard, prefixes=prefixes).items():
                work.made[prefix][shard] = record
        return ""

    monkeypatch.setattr("pipeline.caches.cache._make_free", make_free)
    return prepared


def soon(reached: Callable[[], bool], *, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.05)


def test_what_another_makes_is_waited_for_and_the_rest_is_made(here, monkeypatch, capsys):
    plan, storage = here
    first = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    ((segment, _),) = first.caches["logits"].parts
    theirs = {key: storage.read(key) for key in (shard_key(segment, 0), record_key(segment, 0))}
    forget(storage, segment, 0, 1)
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)

    def another(begun: threading.Event) -> None:
        with claimed(storage, [claim_key(segment, 0)]):
            begun.set()
            soon(lambda: storage.read(record_key(segment, 1)) is not None)
            time.sleep(1)
            for key, data in theirs.items():
                storage.write(key, data)

    begun = threading.Event()
    thread = threading.Thread(target=another, args=(begun,))
    thread.start()
    begun.wait()
    ours = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    thread.join()
    assert ours.passes == len(segment.id_range(1)) * segment.stop_view
    assert ours.caches["logits"].content == first.caches["logits"].content
    assert storage.read(record_key(segment, 0)) == theirs[record_key(segment, 0)]
    told = capsys.readouterr().err
    assert "cache: 132 of 324 views" in told
    assert "others work on 1 of its shards" in told


def test_nothing_waits_for_a_builder_of_this_machine_that_is_gone(here, monkeypatch):
    plan, storage = here
    segment = plan.caches["wise"]["logits"].segment(0, 0, 3)
    gone = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(gone, 0)
    leave_claim(storage, segment, 0, place=claims.place(), pid=gone)
    monkeypatch.setattr("pipeline.caches.cache.time", None)  # there is no sleep
    outcome = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    assert outcome.passes == segment.rows * 3
    assert storage.read(claim_key(segment, 0)) is None


def test_a_builder_elsewhere_is_given_up_after_the_lease(here, monkeypatch):
    plan, storage = here
    segment = plan.caches["wise"]["logits"].segment(0, 0, 3)
    leave_claim(storage, segment, 0, place="another machine", pid=1)
    monkeypatch.setattr(claims, "LEASE", 1.0)
    began = time.monotonic()
    outcome = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    assert 1 < time.monotonic() - began < 20
    assert outcome.passes == segment.rows * 3
    assert storage.read(claim_key(segment, 0)) is None


def test_what_another_left_damaged_is_made_again(here):
    plan, storage = here
    first = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    ((segment, _),) = first.caches["logits"].parts
    record = storage.read(record_key(segment, 0))
    forget(storage, segment, 0)

    def another(begun: threading.Event) -> None:
        with claimed(storage, [claim_key(segment, 0)]):
            begun.set()
            time.sleep(1)
            storage.write(shard_key(segment, 0), b"no shard")
            storage.write(record_key(segment, 0), record)

    begun = threading.Event()
    thread = threading.Thread(target=another, args=(begun,))
    thread.start()
    begun.wait()
    ours = ensure_caches(plan, storage, wanted=logits_of(plan))["wise"]
    thread.join()
    assert ours.passes == len(segment.id_range(0)) * segment.stop_view
    assert len(ours.repaired) == 1
    assert ours.caches["logits"].content == first.caches["logits"].content


@contextmanager
def two_builders(experiment_file, tmp_path):
    """Two processes at one cache, each with a single worker that holds one of its two shards until the gate is opened.

    Yields the plan, the storage, the segment, both processes, and what opens the gate.
    """
    whole_machine = f"resources: {{cpus_per_source_worker: {usable_cpus()}}}\n"
    experiment_file.write_text(experiment_file.read_text() + whole_machine)
    plan, storage = fragile_plan(experiment_file, tmp_path, "gated", lives=0)
    segment = plan.caches["wise"]["logits"].segment(0, 0, 3)
    gate = tmp_path / "lives" / "life-0"
    gate.touch()
    processes = [start("cache", str(experiment_file)) for _ in range(2)]
    try:
        soon(lambda: all(storage.read(claim_key(segment, shard)) for shard in range(2)))
        yield plan, storage, segment, processes, gate.unlink
    finally:
        for process in processes:
            signal_all(process, signal.SIGKILL)
            process.communicate()


def signal_all(process, number):
    for pid in [process.pid, *descendants(process.pid)]:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def ending(process):
    """How many passes a process told at its end, and the hash of the cache."""
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    passes, content = re.search(r"cache   wise logits: (?:found, )?(\d+) source passes; .*content (\w+)", said).groups()
    return int(passes), content


def undisturbed(plan, storage):
    """The hash of the cache when one process makes it alone."""
    for key in list(storage.keys("caches")):
        storage.delete(key)
    return ensure_caches(plan, storage, wanted=logits_of(plan))["wise"].caches["logits"].content


@pytest.mark.slow
def test_two_processes_build_one_cache_once(experiment_file, tmp_path):
    with two_builders(experiment_file, tmp_path) as (plan, storage, segment, processes, open_gate):
        open_gate()
        (passes, content), (others, same) = [ending(process) for process in processes]
        assert {passes, others} == {len(segment.id_range(shard)) * 3 for shard in range(2)}
        assert [key for key in storage.keys("caches") if key.endswith(".claim")] == []
    assert content == same == undisturbed(plan, storage)


@pytest.mark.slow
def test_who_waits_for_a_builder_that_is_killed_goes_on_alone(experiment_file, tmp_path):
    with two_builders(experiment_file, tmp_path) as (plan, storage, segment, (dying, living), open_gate):
        pid = unseal(storage.read(claim_key(segment, 0)))["pid"]
        if pid not in descendants(dying.pid):
            dying, living = living, dying
        signal_all(dying, signal.SIGSTOP)
        open_gate()
        soon(lambda: storage.read(record_key(segment, 1)) is not None)
        time.sleep(3)
        assert living.poll() is None, "it does not wait"
        began = time.monotonic()
        signal_all(dying, signal.SIGKILL)
        passes, content = ending(living)
        assert time.monotonic() - began < LEASE
    assert passes == segment.rows * 3
    assert content == undisturbed(plan, storage)


@pytest.mark.slow
def test_who_sleeps_too_long_is_given_up_and_finds_the_cache_made(experiment_file, tmp_path):
    with two_builders(experiment_file, tmp_path) as (plan, storage, segment, (asleep, awake), open_gate):
        signal_all(asleep, signal.SIGSTOP)
        open_gate()
        passes, content = ending(awake)
        assert passes == segment.rows * 3
        written = {key: storage.read(key) for key in storage.keys("caches")}
        signal_all(asleep, signal.SIGCONT)
        assert ending(asleep) == (0, content)
        assert {key: storage.read(key) for key in storage.keys("caches")} == written
    assert content == undisturbed(plan, storage)
