"""How quick a folder and a bucket are, and how many requests a sweep makes.

    python -m benchmarks.storage

The bucket is on a server that is started for it on this machine, so nothing here is a network's share. First, for each
storage: MB/s of whole objects of 8 MiB written and read one after the other, objects created per second where nobody
else wants them, keys listed per second. Then a small sweep on the bucket, twice, its requests counted by a proxy.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from cluster.storage import Storage, open_storage
from tests.object_store import BUCKET, Proxy, environment, proxy_of, running

OBJECT_BYTES, OBJECTS, SMALL_OBJECTS, REPEATS = 8 << 20, 16, 500, 3
KINDS = ("PUT", "GET", "LIST", "HEAD", "DELETE")
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
    with (
        tempfile.TemporaryDirectory() as name,
        running(Path(name) / "server") as server,
        proxy_of(server.port) as proxy,
    ):
        os.environ |= environment(server.endpoint)
        print("| storage | MB/s written | MB/s read | created/s | listed/s |\n|---|---|---|---|---|")
        print(speeds("folder", open_storage(f"{name}/folder")))
        print(speeds("bucket", open_storage(f"s3://{BUCKET}/speeds")))
        os.environ |= environment(proxy.endpoint)
        file = Path(name) / "sweep.yaml"
        file.write_text(EXPERIMENT.format(bucket=BUCKET, folder=name))
        exported = ("--trial", "0", "--in-process", "--export", f"{name}/source.safetensors")
        run("train", str(file), *exported, "--set", f"storage={name}/other", "--set", "methods=[{method: scratch}]")
        for _ in range(2):
            requests_of_a_sweep(proxy, str(file))


if __name__ == "__main__":
    main()
