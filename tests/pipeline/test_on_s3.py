"""The pipeline on a bucket of a real server: the same bytes and tables as in a folder, and no secret anywhere."""

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.storage import open_storage
from pipeline.caches.labels import finish_segment
from pipeline.caches.segments import read_cache, require_cache
from pipeline.caches.shards import Part, ShardJob, make_shard
from pipeline.packing.packed import read_packed
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from tests.object_store import ACCESS_KEY, BUCKET, SECRET_KEY
from tests.pipeline.sweeps.test_sweep import content, table
from tests.processes import finish


def pack_and_cache(file: Path, uri: str):
    """Stages without Ray: the packed arrays and the whole cache of the source's logits, made in this process."""
    stages = Stages(load_experiment(str(file), changes=[f"storage={uri}"]), lambda line: None)
    plan, storage = stages.pack(), stages.storage
    spec = plan.caches["wise"]["logits"]
    segment = spec.segment(0, 0, spec.view_count)
    job = ShardJob(
        storage_uri=storage.uri,
        parts={segment.prefix: Part(source="wise", segment=segment)},
        sources={"wise": plan.experiment.sources["wise"]},
        recipe=plan.recipe,
        batch_size=50,
        threads=1,
        device="cpu",
        packed=plan.packed,
    )
    made = [make_shard(plan.sources, job, shard=shard, prefixes=[segment.prefix]) for shard in range(segment.shards)]
    finish_segment(storage, segment, [records[segment.prefix] for records in made])
    cached = read_cache(storage, require_cache(storage, spec, source="wise"))
    return read_packed(plan.packed, storage), cached, storage


def test_what_is_packed_and_cached_is_the_same_as_in_a_folder(experiment_file, bucket_uri, tmp_path):
    packed, cached, bucket = pack_and_cache(experiment_file, bucket_uri)
    expected, expected_cached, folder = pack_and_cache(experiment_file, f"{tmp_path}/folder")
    for name in ("images", "labels", "splits"):
        np.testing.assert_array_equal(getattr(packed, name), getattr(expected, name))
    np.testing.assert_array_equal(cached, expected_cached)
    keys = list(bucket.keys(""))
    assert keys == list(folder.keys(""))
    parquet = [key for key in keys if key.endswith(".parquet")]
    assert len(parquet) == 3
    assert all(bucket.read(key) == folder.read(key) for key in parquet)


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For all that processes put aside: names of sockets have no room for pytest's own folder."""
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:
        yield Path(folder)


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_on_a_bucket_is_that_in_a_folder_and_leaves_no_secret(
    experiment_file, bucket_uri, object_store, tmp_path, short_folder, monkeypatch
):
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.setenv(name, str(short_folder))
    code, in_folder = finish("sweep", str(experiment_file))
    assert code == 0, in_folder
    changed = ("--set", f"storage={bucket_uri}")
    code, first = finish("sweep", str(experiment_file), *changed)
    assert code == 0, first
    assert "sweep   0 trials found, 4 done now" in first
    assert (content(first), table(first)) == (content(in_folder), table(in_folder))
    code, again = finish("sweep", str(experiment_file), *changed)
    assert code == 0, again
    assert "cache   wise logits: found, 0 source passes;" in again
    assert "sweep   4 trials found, 0 done now" in again
    assert table(again) == table(first)

    client, root = object_store.client(), bucket_uri.removeprefix(f"s3://{BUCKET}/")
    stored = client.list_objects_v2(Bucket=BUCKET, Prefix=root)["Contents"]
    told = [in_folder.encode(), first.encode(), again.encode()]
    for entry in stored:
        answer = client.get_object(Bucket=BUCKET, Key=entry["Key"])
        told += [answer["Body"].read(), str(answer).encode()]
    files = [path for folder in (tmp_path, short_folder) for path in files_below(folder)]
    assert len(stored) > 10
    assert any("raylet" in path.name for path in files)
    for data in [*told, *(path.read_bytes() for path in files)]:
        assert SECRET_KEY.encode() not in data
        assert ACCESS_KEY.encode() not in data


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_other_verb_works_on_a_bucket(experiment_file, bucket_uri, tmp_path):
    changed = ("--set", f"storage={bucket_uri}")
    exported = tmp_path / "target.safetensors"
    for verb, *more in (("pack",), ("cache",), ("train", "--trial", "0", "--in-process", "--export", str(exported))):
        code, said = finish(verb, str(experiment_file), *more, *changed)
        assert code == 0, said
    assert exported.stat().st_size > 1000
    code, said = finish("verify", str(experiment_file), *changed)
    assert code == 0, said
    assert "wise logits" in said
    code, said = finish("report", str(experiment_file), *changed)
    assert "report  " + bucket_uri in said
    code, said = finish("caches", bucket_uri)
    assert (code, len(re.findall(r"\bwhole\b", said))) == (0, 1), said
    code, said = finish("gc", bucket_uri, str(experiment_file), "--yes", "--set", f"storage={bucket_uri}/")
    assert code == 0, said
    storage = open_storage(bucket_uri)
    assert list(storage.keys("caches"))
    code, said = finish(
        "gc", bucket_uri, str(experiment_file), "--yes", *changed, "--set", "methods=[{method: scratch}]"
    )
    assert code == 0, said
    assert not list(storage.keys("caches"))
    assert list(storage.keys("results"))
