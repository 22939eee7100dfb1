"""Builds caches and runs sweeps without Ray, once for each line of its input: `python -m tests.racing FILE`.

A line is the address of a storage. Everything but Ray's pool of workers is what commands do: claims, commits, waiting
for others, trials one after the other. It answers with a line of JSON.
"""

import json
import sys

import torch

from pipeline.caches import cache
from pipeline.caches.labels import as_record
from pipeline.caches.shards import ShardWriter
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages


def make_here(job, work, free, **_) -> str:
    """As `_make_free`, in this process: what others hold meanwhile is left to them."""
    writer = ShardWriter(job)
    for (*_, shard), prefixes in free.items():
        answer = writer({"shard": shard, "prefixes": prefixes})
        for prefix, record in json.loads(answer["records"]).items():
            work.made[prefix][shard] = as_record(record)
    return ""


def main() -> None:
    torch.set_num_threads(1)
    cache._make_free = make_here
    print("ready", flush=True)
    for line in sys.stdin:
        changes = [f"storage={line.strip()}", "resources.runner=plain"]
        stages = Stages(load_experiment(sys.argv[1], changes=changes), lambda said: None)
        plan = stages.pack()
        made = stages.cache(plan)["wise"]
        outcome = stages.sweep(plan)
        told = {"content": made.caches["logits"].content, "passes": made.passes, "failures": outcome.failures}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
