"""A sweep with Ray, on a bucket that is busy at times, as operators see it: exporter, logs, and the proxy's own list.

The figures are scraped over HTTP where Prometheus would, and the logs are read from the files Ray keeps of workers.
"""

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import write_experiment
from tests.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, forget, proxy_of, times, use
from tests.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SAMPLES = 2 * 3 * 4 * (16 + 32)  # seeds, epochs, steps; sskt adds as many images of the pool
VIEWS = 108 * 3
PROGRAM = """
import sys, time, urllib.request
from pipeline.__main__ import main
assert main(["sweep", sys.argv[1]]) == 0
import ray
from ray._private.worker import _global_node
node = ray.nodes()[0]
address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
end, same = time.monotonic() + 60, []
while time.monotonic() < end:
    time.sleep(1)
    with urllib.request.urlopen(address, timeout=10) as answer:
        text = answer.read().decode()
    seen = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("ray_sskt_train_samples_total")]
    requests = [float(line.split()[-1]) for line in text.splitlines() if line.startswith("ray_sskt_s3_requests_total")]
    from cluster.metrics import traffic
    same = [*same, sum(requests)] if same and same[-1] == sum(requests) else [sum(requests)]
    # What workers ask for last the driver is not told of: several reports of theirs have to say the same.
    if sum(seen) >= int(sys.argv[2]) and sum(requests) >= traffic().requests and len(same) > 5:
        break
print(_global_node.get_session_dir_path(), text, sep="\\n", end="")
"""


@dataclass
class Run:
    """What a run left for operators."""

    figures: dict[str, dict[tuple[str, ...], float]]
    """By name, then by experiment, stage and the labels of its own."""
    driver: list[dict[str, object]]
    workers: list[dict[str, object]]
    raw: str
    requests: list[tuple[str, str, str | None]]

    def sum(self, name: str, *labels: str) -> float:
        return sum(value for at, value in self.figures[name].items() if set(labels) <= set(at))


def read_figures(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    figures: dict[str, dict[tuple[str, ...], float]] = defaultdict(lambda: defaultdict(float))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {name: value for name, value in sample.labels.items() if name[0].islower() and name[:4] != "otel"}
            if sample.name.startswith("ray_sskt"):
                ours = (labels.pop("experiment"), labels.pop("stage"), *labels.values())
                figures[sample.name][ours] += sample.value
    return figures


def events(text: str) -> list[dict[str, object]]:
    """Lines of workers stand between Ray's own, which begin with a colon."""
    return [json.loads(line) for line in text.splitlines() if not line.startswith(":")]


@pytest.fixture(scope="module")
def run(tmp_path_factory, pictures, source_file, object_store) -> Run:
    folder = tmp_path_factory.mktemp("operated")
    file = write_experiment(folder, pictures=pictures, source_file=source_file)
    file.write_text(file.read_text().replace(f"storage: {folder}/store", f"storage: s3://{BUCKET}/operated"))
    faults = [
        times(2, "503", method="PUT", part="caches/"),
        times(1, "reset", method="PUT", part="results/"),
        times(1, "flip", method="GET", part=".parquet"),
    ]
    with proxy_of(object_store.port) as proxy, pytest.MonkeyPatch.context() as patch:
        proxy.rule = lambda method, path: next(filter(None, (fault(method, path) for fault in faults)), None)
        use(proxy.endpoint, patch)
        told = {"SSKT_LOG": "json", "RAY_metrics_report_interval_ms": "1000", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(file), str(SAMPLES)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | told,
        )
        requests = list(proxy.requests)
    forget()
    assert done.returncode == 0, done.stderr
    session, _, text = done.stdout.partition("\n")
    raw = "".join(path.read_text() for path in Path(session, "logs").glob("worker-*.err"))
    return Run(read_figures(text), events(done.stderr), events(raw), done.stderr + raw + text, requests)


def test_the_figures_are_what_was_done(run):
    assert run.sum("ray_sskt_train_samples_total", "small", "train") == SAMPLES
    assert run.sum("ray_sskt_train_steps_total") == 2 * 2 * 3 * 4
    assert run.sum("ray_sskt_epochs_total") == 2 * 2 * 3
    assert run.sum("ray_sskt_checkpoint_seconds_count") == 2 * 2 * 3
    assert 0 < run.sum("ray_sskt_input_seconds_total") < run.sum("ray_sskt_train_seconds_total") < 60
    assert run.sum("ray_sskt_source_views_total", "small", "cache") == VIEWS
    assert run.figures["ray_sskt_shards_total"] == {("small", "cache", "made"): 2}
    states = {at[-1]: value for at, value in run.figures["ray_sskt_trials"].items()}
    assert {state: states[state] for state in ("left", "done", "failed", "stopped", "found", "busy")} == {
        "left": 0, "done": 4, "failed": 0, "stopped": 0, "found": 0, "busy": 0,
    }  # fmt: skip
    assert states.get("running", 0) == 0
    assert "ray_sskt_claims_lost_total" not in run.figures


def test_requests_and_retries_are_those_that_the_proxy_saw(run):
    wrong = [fault for _, _, fault in run.requests if fault]
    assert sorted(wrong) == ["503", "503", "flip", "reset"]
    assert run.sum("ray_sskt_s3_requests_total") == run.sum("ray_sskt_s3_seconds_count") == len(run.requests)
    assert run.sum("ray_sskt_s3_retries_total") == len(wrong)
    errors = {code: run.sum("ray_sskt_s3_errors_total", code) for code in ("503", "spoilt", "ConnectionClosedError")}
    assert errors == {"503": 2, "spoilt": 1, "ConnectionClosedError": 1}
    ends = [line for line in run.driver if line["event"] == "stage_end"]
    assert [line["stage"] for line in ends] == ["pack", "cache", "sweep"]
    assert sum(line["retried"] for line in ends) == len(wrong)
    outside = sum(value for at, value in run.figures["ray_sskt_s3_requests_total"].items() if not at[1])
    assert len(run.requests) - outside <= sum(line["requests"] for line in ends) <= len(run.requests)
    said = [line["message"] for line in run.driver if line["event"] == "notice"]
    told = [re.fullmatch(r"(\w+) +storage: (\d+) requests, (\d+) retried", line) for line in said]
    assert [(match[1], int(match[2]), int(match[3])) for match in told if match] == [
        (line["stage"], line["requests"], line["retried"]) for line in ends if line["retried"]
    ]


def test_every_line_is_json_and_says_of_which_trial_or_shard_it_is(run):
    keys = {line["run_key"] for line in run.driver if line["event"] == "trial_ended"}
    assert len(keys) == 4
    assert all((line["state"], line["epoch"]) == ("done", 3) for line in run.driver if line["event"] == "trial_ended")
    for key in keys:
        told = [line for line in run.workers if line.get("run_key") == key]
        assert [line["event"] for line in told] == ["trial_started"] + ["trial_epoch"] * 3
        assert [line["epoch"] for line in told[1:]] == [1, 2, 3]
    made = [line for line in run.workers if line["event"] == "shard_made"]
    assert sorted((line["source"], line["shard"]) for line in made) == [("wise", 0), ("wise", 1)]
    assert sum(line["passes"] for line in made) == VIEWS
    retries = [line for line in run.driver + run.workers if line["event"] == "storage_retry"]
    assert sorted(line["code"] for line in retries) == ["503", "503", "ConnectionClosedError", "spoilt"]
    for line in run.driver + run.workers:
        assert {"time", "level", "event", "experiment", "stage", "node", "pid"} <= line.keys()
        trial, shard = line["event"].startswith("trial"), line["event"].startswith("shard")
        assert (not trial or line["run_key"] in keys) and (not shard or line["shard"] in (0, 1))


def test_no_line_and_no_label_holds_a_secret(run):
    assert SECRET_KEY not in run.raw
    assert ACCESS_KEY not in run.raw
