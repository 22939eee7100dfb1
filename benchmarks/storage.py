"""How quick a folder and a bucket are, and how many requests a sweep makes.

    python -m benchmarks.storage

The bucket is on a server that is started for it on this machine, so nothing here is a network's share. It has a
processor of its own and so has what asks it, as if they were two machines, where there are two. First, for each
storage: MB/s of whole objects of 8 MiB written and read one after the other, objects created per second where nobody
else wants them, keys listed per second; and MB/s of objects of which the node has copies. Then a cache of shards of 8
MiB, committed by two at once and read cold, in turns with the same bytes through pyarrow, as many at once, with the
time its client takes of a processor, and its requests counted by a proxy. Then a small sweep on the bucket, twice, and
a trial of 20 epochs.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pyarrow import fs

from cluster.near import nearby
from cluster.storage import Storage, open_storage
from pipeline.caches.claims import claim_key, claimed
from pipeline.caches.labels import (
    READERS,
    Made,
    commit_shard,
    finish_segment,
    load_manifest,
    read_record,
    read_segment,
    shard_key,
)
from pipeline.planning.specs import Labels, Segment
from tests.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, Proxy, environment, forget, proxy_of, running

OBJECT_BYTES, OBJECTS, SMALL_OBJECTS, REPEATS = 8 << 20, 16, 500, 3
WORKERS = 2
VIEWS, WIDTH = 8, 512
EPOCHS = 20
CORES = os.sched_getaffinity(0)
KINDS = ("PUT", "GET", "LIST", "HEAD", "DELETE")
RAW = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
"""For pyarrow: without its own checksums it is quicker."""
EXPERIMENT = """
storage: s3://{bucket}/sweep
dataset: {{kind: digits, validation: 0.2, test: 0.2}}
views: {{ops: [pad_crop: 1], count: 4}}
sources:
  source: {{weights: {folder}/source.safetensors}}
target: {{architecture: small_cnn, options: {{width: 4}}}}
training: {{epochs: 3, steps_per_epoch: 4, batch_size: 16, lr: 0.05}}
methods:
  - {{method: scratch}}
  - {{method: sskt, sources: [source]}}
seeds: [0, 1, 2, 3]
"""


def best(run: Callable[[int], object]) -> float:
    """Shortest of several runs, in seconds; each is told its number."""
    times = []
    for number in range(REPEATS):
        began = time.perf_counter()
        run(number)
        times.append(time.perf_counter() - began)
    return min(times)


def speeds(name: str, storage: Storage) -> str:
    """Return a line of the table."""
    data, large = os.urandom(OBJECT_BYTES), [f"large/{number}" for number in range(OBJECTS)]
    write = best(lambda _: [storage.write(key, data) for key in large])
    read = best(lambda _: [storage.read(key) for key in large])
    create = best(lambda turn: [storage.create(f"small/{turn}/{key}", b"claim") for key in range(SMALL_OBJECTS)])
    listed = best(lambda _: list(storage.keys("small")))
    megabytes = OBJECTS * OBJECT_BYTES / 1e6
    return (
        f"| {name} | {megabytes / write:.0f} | {megabytes / read:.0f} | {SMALL_OBJECTS / create:.0f} "
        f"| {REPEATS * SMALL_OBJECTS / listed:.0f} |"
    )


class Shards:
    """A cache's segment whose shards are as large as the objects."""

    def __init__(self, uri: str) -> None:
        labels = Labels(source={}, views={}, output="logits", kind="", width=WIDTH, encoding="fp32", numerics={})
        rows = OBJECTS * OBJECT_BYTES // (VIEWS * labels.view_bytes)
        self.segment = Segment(labels=labels, pool="", first=0, stop=rows, first_view=0, stop_view=VIEWS)
        self.storage, self.data = open_storage(uri), os.urandom(OBJECT_BYTES)
        self.keys = [shard_key(self.segment, shard) for shard in range(OBJECTS)]

    def generate(self) -> None:
        """Claim, look up and commit all, as workers do once they have what a source says; then write the manifest."""
        with ThreadPoolExecutor(WORKERS) as pool:
            finish_segment(self.storage, self.segment, list(pool.map(self._generate, range(OBJECTS))))

    def read(self) -> None:
        """Read and verify all, as a sweep does."""
        manifest = load_manifest(self.storage, self.segment)
        assert manifest is not None
        read_segment(self.storage, self.segment, manifest)

    def _generate(self, shard: int) -> object:
        payload = np.frombuffer(self.data, np.uint8).reshape(-1, VIEWS, self.segment.labels.view_bytes)
        with claimed(self.storage, [claim_key(self.segment, shard)]) as claims:
            read_record(self.storage, self.segment, shard)
            (claim,) = claims.values()
            claim.held()
            made = Made(payload=payload, golden={}, passes=0, seconds=0)
            return commit_shard(self.storage, self.segment, shard=shard, made=made)


class Raw:
    """The same bytes through pyarrow's file system, which checks none."""

    def __init__(self, endpoint: str) -> None:
        keys = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "region": "us-east-1", "scheme": "http"}
        self.files = fs.S3FileSystem(endpoint_override=endpoint.removeprefix("http://"), **keys)

    def write(self, paths: list[str], data: bytes) -> None:
        """Write objects, as many at once as there are workers."""
        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(lambda path: self._write(path, data), paths))

    def read(self, paths: list[str], *, at_once: int) -> None:
        """Read objects whole."""
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(self._read, paths))

    def _write(self, path: str, data: bytes) -> None:
        with self.files.open_output_stream(path) as file:
            file.write(data)

    def _read(self, path: str) -> None:
        with self.files.open_input_file(path) as file:
            file.read()


def in_turns(ways: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """For each way, MB/s at best, and milliseconds of this process's processor time for a MB."""
    megabytes, best = OBJECTS * OBJECT_BYTES / 1e6, dict.fromkeys(ways, (0.0, float("inf")))
    for _ in range(REPEATS):
        for name, way in ways.items():
            began, busy = time.perf_counter(), time.process_time()
            way()
            speed, cost = megabytes / (time.perf_counter() - began), 1e3 * (time.process_time() - busy) / megabytes
            best[name] = max(best[name][0], speed), min(best[name][1], cost)
    return best


def shards_beside_pyarrow(endpoint: str) -> None:
    """Print both ways of both directions, and how they compare."""
    shards, raw = Shards(f"s3://{BUCKET}/shards"), Raw(endpoint)
    paths = [f"{BUCKET}/shards/{key}" for key in shards.keys]
    raw_paths = [f"{BUCKET}/raw/{number}" for number in range(OBJECTS)]
    found = in_turns(
        {
            "committed": shards.generate,
            "written by pyarrow": lambda: raw.write(raw_paths, shards.data),
            "written and read by pyarrow": lambda: (
                raw.write(raw_paths, shards.data),
                raw.read(raw_paths, at_once=WORKERS),
            ),
            "read cold": shards.read,
            "read by pyarrow, one by one": lambda: raw.read(paths, at_once=1),
            f"read by pyarrow, {READERS} at once": lambda: raw.read(paths, at_once=READERS),
        }
    )
    print("\n| shards of 8 MiB | MB/s | ms of a processor a MB | ratio |\n|---|---|---|---|")
    for name, (speed, cost) in found.items():
        ours = found["committed" if "writ" in name else "read cold"][0]
        ratio = f"{ours / speed:.2f}" if "pyarrow" in name else ""
        print(f"| {name} | {speed:.0f} | {cost:.1f} | {ratio} |")


def requests_for_a_gigabyte(proxy: Proxy) -> None:
    """Print the requests that making and reading shards takes."""
    shards, gigabytes = Shards(f"s3://{BUCKET}/counted"), OBJECTS * OBJECT_BYTES / 1e9
    for name, way in (("committed", shards.generate), ("read", shards.read)):
        del proxy.requests[:]
        way()
        kinds = Counter(method for method, *_ in proxy.requests)
        told = ", ".join(f"{count / gigabytes:.0f} {kind}" for kind, count in kinds.items())
        print(f"\na GB {name}: {len(proxy.requests) / gigabytes:.0f} requests ({told})")


def puts_of_a_trial(proxy: Proxy, file: str) -> None:
    """Print what a training writes besides its checkpoints."""
    del proxy.requests[:]
    changes = ("--set", f"training.epochs={EPOCHS}", "--set", "methods=[{method: scratch}]", "--set", "seeds=[9]")
    run("train", file, "--in-process", *changes)
    puts = {area: counter["PUT"] for area, counter in sorted(counted(proxy.requests).items()) if counter["PUT"]}
    saved = puts.pop("checkpoints")
    print(f"\na trial of {EPOCHS} epochs: {saved} PUT of checkpoints and {sum(puts.values())} others: {puts}")


def speed_of_copies(storage: Storage) -> str:
    """MB/s of objects that lie on this node too: what is still asked for is whether they have changed."""
    large = [f"large/{number}.parquet" for number in range(OBJECTS)]
    for key in large:
        storage.write(key, os.urandom(OBJECT_BYTES))
    read = best(lambda _: [storage.read(key) for key in large])
    return f"\nread again on a node that has copies: {OBJECTS * OBJECT_BYTES / 1e6 / read:.0f} MB/s"


def run(*words: str) -> None:
    """Run a verb of the pipeline."""
    subprocess.run([sys.executable, "-m", "pipeline", *words], check=True, capture_output=True)  # noqa: S603


def counted(requests: Iterable[tuple[str, str, str | None]]) -> dict[str, Counter[str]]:
    """How many requests of each kind were made below each first name of a key."""
    counts: dict[str, Counter[str]] = {}
    for method, path, _ in requests:
        listing = re.search(r"[?&]prefix=sweep%2F(\w*)", path)
        area = listing[1] if listing else path.partition("?")[0].split("/")[3]
        counts.setdefault(area, Counter())["LIST" if listing else method] += 1
    return counts


def requests_of_a_sweep(proxy: Proxy, file: str) -> None:
    """Run it and print the requests it made."""
    del proxy.requests[:]
    run("sweep", file)
    counts = counted(proxy.requests)
    print("\n| keys below | " + " | ".join(KINDS) + " |\n|---|" + "---|" * len(KINDS))
    for area, counter in [*sorted(counts.items()), ("all", sum(counts.values(), Counter()))]:
        print(f"| {area} | " + " | ".join(str(counter[kind]) for kind in KINDS) + " |")


def main() -> None:
    """Print the tables."""
    os.sched_setaffinity(0, {min(CORES)})
    with (
        tempfile.TemporaryDirectory() as name,
        running(Path(name) / "server") as server,
        proxy_of(server.port) as proxy,
    ):
        os.sched_setaffinity(0, {max(CORES)})
        os.environ |= environment(server.endpoint) | RAW
        print("| storage | MB/s written | MB/s read | created/s | listed/s |\n|---|---|---|---|---|")
        print(speeds("folder", open_storage(f"{name}/folder")))
        print(speeds("bucket", open_storage(f"s3://{BUCKET}/speeds")))
        os.environ["SSKT_NODE_CACHE"] = f"{name}/node"
        print(speed_of_copies(nearby(open_storage(f"s3://{BUCKET}/copies"), 1)))
        shards_beside_pyarrow(server.endpoint)
        os.sched_setaffinity(0, CORES)
        os.environ |= environment(proxy.endpoint)
        forget()
        requests_for_a_gigabyte(proxy)
        file = Path(name) / "sweep.yaml"
        file.write_text(EXPERIMENT.format(bucket=BUCKET, folder=name))
        exported = ("--trial", "0", "--in-process", "--export", f"{name}/source.safetensors")
        run("train", str(file), *exported, "--set", f"storage={name}/other", "--set", "methods=[{method: scratch}]")
        for _ in range(2):
            requests_of_a_sweep(proxy, str(file))
        puts_of_a_trial(proxy, str(file))


if __name__ == "__main__":
    main()
