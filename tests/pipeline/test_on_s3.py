"""The pipeline on a bucket of a real server: the same bytes and tables as in a folder, and no secret anywhere."""

import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster import s3_client, session
from cluster.storage import open_storage
from pipeline.__main__ import main
from pipeline.caches.labels import finish_segment
from pipeline.caches.segments import read_cache, require_cache
from pipeline.caches.shards import Part, ShardJob, make_shard
from pipeline.packing.packed import read_packed
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from tests.object_store import ACCESS_KEY, BUCKET, READ_ONLY_KEY, READ_ONLY_SECRET, SECRET_KEY, forget, proxy_of, use
from tests.pipeline.sweeps.test_sweep import content, table
from tests.pipeline.trials.test_trials import prepared, with_methods
from tests.processes import ROOT, finish, start


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


WRONG = {
    "no keys": ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials (NoCredentialsError)"),
    "unknown key": ({"AWS_ACCESS_KEY_ID": "nobody"}, "does not know the access key; check AWS_ACCESS_KEY_ID"),
    "wrong secret": ({"AWS_SECRET_ACCESS_KEY": "guessed"}, "refuses the secret key; check AWS_SECRET_ACCESS_KEY"),
    "nobody there": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer"),
    "encryption": ({"SSKT_S3_ENCRYPTION": "aes"}, "SSKT_S3_ENCRYPTION is 'aes'; it has to be"),
    "no bucket": ({}, "there is no such bucket; make it, or correct the name"),
    "read only": ({"AWS_ACCESS_KEY_ID": READ_ONLY_KEY, "AWS_SECRET_ACCESS_KEY": READ_ONLY_SECRET}, "access is denied"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_every_verb_tells_in_one_line_why_a_bucket_cannot_be_used_before_any_work(
    experiment_file, bucket_uri, object_store, monkeypatch, capsys, wrong
):
    """What is wrong with the address, the keys or the rights."""
    changes, words = WRONG[wrong]
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(session, "start_session", lambda: pytest.fail("a session is started"))
    monkeypatch.setattr(s3_client, "HASTY", s3_client.HASTY._replace(seconds=0))
    forget()
    uri, file = bucket_uri.replace(BUCKET, "another-bucket" if wrong == "no bucket" else BUCKET), str(experiment_file)
    changed = ("--set", f"storage={uri}")
    verbs = [(verb, file, *changed) for verb in ("pack", "cache", "train", "sweep")]
    verbs += [("gc", uri, file, "--yes", *changed)]
    if wrong != "read only":
        verbs += [(verb, file, *changed) for verb in ("report", "verify", "watch")]
        verbs += [("sweep", file, "--dry-run", *changed), ("gc", uri, file, *changed)]
        verbs += [("export", file, "--to", "x", *changed), ("caches", uri), ("cache-diff", uri, "1", "2")]
    for verb in verbs:
        began = time.monotonic()
        code = main(list(verb))
        said = capsys.readouterr()
        assert (code, said.out, len(said.err.splitlines())) == (2, "", 1), verb
        assert said.err.startswith("error: ")
        assert words in said.err
        assert SECRET_KEY not in said.err
        assert time.monotonic() - began < 10
    assert "Contents" not in object_store.client().list_objects_v2(Bucket=BUCKET, Prefix=bucket_uri.split("/", 3)[3])


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_server_that_never_answers_keeps_no_command_waiting(experiment_file, bucket_uri, monkeypatch):
    """As a person meets it: processes, from their start to their end."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        code, said = finish("sweep", str(experiment_file), "--set", f"storage={bucket_uri}")
        assert (code, len(said.splitlines())) == (2, 1), said
        assert said.startswith(f"error: {bucket_uri} cannot be listed: http://127.0.0.1:")
        assert time.monotonic() - began < 20  # mostly importing
        began = time.monotonic()
        command = [sys.executable, "-m", "cluster", "doctor", "--storage", bucket_uri]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        (bad,) = [line for line in done.stdout.splitlines() if line.startswith("bad  storage")]
        assert "does not answer (ReadTimeoutError)" in bad
        assert time.monotonic() - began < 40  # a session that starts and two looks of 5 seconds


def found(said: str) -> list[str]:
    """What is said of a demo that does not depend on when and where it ran: fingerprints, content, run keys, table."""
    lines = [line for line in said.splitlines() if line.startswith(("pack ", "cache ", "|"))]
    return [re.sub(r": [\w, ]*source passes;", ":", line) for line in lines] + re.findall(r"train .*\[(\w+)\]", said)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_on_a_bucket_is_that_in_a_folder_and_is_found_again(bucket_uri, tmp_path):
    smaller = (
        "seeds=[0]",
        "training.epochs=2",
        "views.count=2",
        "methods=[{method: scratch}, {method: sskt, sources: [mnist, lite0], learn_from: all}]",
        f"sources.mnist.weights={tmp_path}/mnist.safetensors",
    )
    places, said = (f"{tmp_path}/demo", bucket_uri, bucket_uri), []
    for place in places:
        changes = [word for change in (f"storage={place}", *smaller) for word in ("--set", change)]
        code, told = finish("demo", *changes)
        assert code == 0, told
        said.append(told)
    in_folder, first, again = said
    assert found(first) == found(in_folder) == found(again)
    assert len(found(first)) > 10
    assert "sweep   0 trials found, 2 done now" in first
    assert "sweep   2 trials found, 0 done now" in again
    assert not re.search(r": [1-9]\d* source passes;", again)
    folder, bucket = open_storage(places[0]), open_storage(bucket_uri)
    keys = list(bucket.keys(""))
    assert keys == list(folder.keys(""))  # run keys among them
    exact = [key for key in keys if key.endswith((".parquet", ".safetensors")) and not key.startswith("reports/")]
    assert len(exact) > 6
    assert all(bucket.read(key) == folder.read(key) for key in exact)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_node_gets_images_labels_and_graphs_once_however_many_processes_train_there(
    experiment_file, bucket_uri, object_store, tmp_path, monkeypatch
):
    with_methods(experiment_file, "method: sskt, sources: [wise]", "method: lsp, sources: [wise]")
    _, storage = prepared(experiment_file, f"storage={bucket_uri}")
    large = {found.key: found.bytes for found in storage.objects("") if found.key.endswith(".parquet")}
    assert {key.partition("/")[0] for key in large} == {"datasets", "caches", "graphs"}
    with proxy_of(object_store.port) as proxy:
        use(proxy.endpoint, monkeypatch)
        monkeypatch.setenv("SSKT_NODE_CACHE", str(tmp_path / "new node"))
        changed = ("--in-process", "--set", f"storage={bucket_uri}")
        running = [start("train", str(experiment_file), "--trial", str(number), *changed) for number in range(4)]
        ended = [(process.communicate(timeout=240)[0], process.returncode) for process in running]
        assert [code for _, code in ended] == [0] * 4, ended
        answers = [one for one in proxy.answers if one[0] == "GET" and ".parquet" in one[1]]
    forget()
    left = {
        path.partition(f"/{storage.uri.removeprefix('s3://')}/")[2]: size
        for _, path, status, size in answers
        if status == 200
    }
    assert left == large
    assert sum(size for *_, size in answers) == sum(large.values())
    assert sum(status == 304 for _, _, status, _ in answers) > 2 * len(left)
