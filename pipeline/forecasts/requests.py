"""How many requests to a bucket a run makes, by what `benchmarks.storage` has counted (docs/storage.md)."""

from collections import Counter
from collections.abc import Mapping

from pipeline.caches.claims import BEAT

PER_TRIAL = {"PUT": 3, "GET": 6, "LIST": 2, "DELETE": 2}
"""Its claim, its network, its result; what was there before, and the report's reading."""
PER_EPOCH = {"PUT": 1, "LIST": 1, "DELETE": 1}
"""A checkpoint, and the end of an older one."""
PER_OUTPUT = {"PUT": 3, "GET": 8, "DELETE": 1}
"""Of a shard: its claim, its bytes, its record; they are read back, and once more by the driver."""
PER_SHARD = {"GET": 1}
"""The part of the packed images that it needs, at least; larger shards need several."""
PER_SEGMENT = {"PUT": 1, "GET": 3, "LIST": 4}
"""Its manifest."""
PER_BEAT = {"PUT": 1, "GET": 1}
"""Of every claim, while work goes on under it."""
PER_COMMAND = {"PUT": 14, "GET": 2, "LIST": 6}
"""What is packed, what is there, the report."""

WRITES = ("PUT", "LIST")
"""What costs as much as a PUT."""


def requests_of(
    *, trials: int, epochs: int, shards: int, outputs: int, segments: int, claimed_seconds: float = 0.0
) -> Counter[str]:
    """By kind. outputs: of all shards together; claimed_seconds: of all trials and shards together."""
    counted = [
        (1, PER_COMMAND),
        (trials, PER_TRIAL),
        (epochs, PER_EPOCH),
        (shards, PER_SHARD),
        (outputs, PER_OUTPUT),
        (segments, PER_SEGMENT),
        (int(claimed_seconds / BEAT), PER_BEAT),
    ]
    return Counter({kind: sum(count * each.get(kind, 0) for count, each in counted) for kind in PER_TRIAL})


def cost_of(requests: Mapping[str, int], *, per_1000_writes: float, per_1000_reads: float) -> float:
    """Dollars; what deletes costs nothing."""
    writes = sum(requests.get(kind, 0) for kind in WRITES)
    return writes / 1000 * per_1000_writes + requests.get("GET", 0) / 1000 * per_1000_reads
