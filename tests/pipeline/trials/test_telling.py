from types import SimpleNamespace

import pytest
import torch

from cluster import metrics
from cluster.metrics import Figure, Work
from pipeline.trials.telling import named, told, training
from sskt.loop import Context

PLANNED = SimpleNamespace(
    run_key="ab12",
    facts=SimpleNamespace(multi_label=False),
    trial=SimpleNamespace(label="kd places", seed=3, method="kd"),
)
WORK = Work("mine", "train")


@pytest.fixture(autouse=True)
def ledger(monkeypatch):
    monkeypatch.setattr(metrics, "_STATE", metrics._State())
    return metrics._STATE.ledger


def test_what_passes_through_is_counted_and_passed_on(ledger, log_lines):
    heard = []
    context = Context(
        device=torch.device("cpu"),
        report=lambda metrics: heard.append(("report", metrics["epoch"])),
        save=lambda state: heard.append(("save", state["epoch"])),
        load=lambda: {"epoch": 4},
    )
    with training(PLANNED, "mine", first=True):
        context = told(context, PLANNED, first=True)
        assert context.load() == {"epoch": 4}
        for waited in (0.25, 0.5):
            context.learned(64, waited, 1.0)
        context.save({"epoch": 5})
        context.report({"epoch": 5, "loss": 1.0, "validation_accuracy": 91.5})
        assert ledger.news()[Figure("sskt_trials", WORK, (("state", "running"),))] == 1
    assert heard == [("save", 5), ("report", 5)]
    totals = {
        name: ledger.total(f"sskt_{name}")
        for name in ("train_steps", "train_samples", "train_seconds", "input_seconds", "epochs", "checkpoint_seconds")
    }
    assert totals == {
        "train_steps": 2,
        "train_samples": 128,
        "train_seconds": 2.0,
        "input_seconds": 0.75,
        "epochs": 1,
        "checkpoint_seconds": 1,
    }
    levels = ledger.news()
    assert levels[Figure("sskt_trials", WORK, (("state", "running"),))] == 0
    assert levels[Figure("sskt_validation_score", WORK, (("method", "kd"),))] == 91.5
    said = log_lines()
    assert [(line["event"], line.get("epoch"), line.get("score")) for line in said] == [
        ("trial_started", None, None),
        ("trial_resumed", 4, None),
        ("trial_epoch", 5, 91.5),
    ]
    assert all(named(PLANNED).items() <= line.items() for line in said)


def test_of_several_processes_each_counts_its_steps_and_the_first_alone_speaks(ledger, log_lines):
    context = Context(device=torch.device("cpu"), load=lambda: {"epoch": 4})
    with training(PLANNED, "mine", first=False):
        context = told(context, PLANNED, first=False)
        context.load()
        context.learned(64, 0.5, 1.0)
        context.save({"epoch": 5})
        context.report({"epoch": 5, "validation_accuracy": 91.5})
    assert log_lines() == []
    assert ledger.total("sskt_train_samples") == 64
    assert ledger.total("sskt_epochs") == ledger.total("sskt_checkpoint_seconds") == 0


def test_one_that_fails_runs_no_longer(ledger):
    with pytest.raises(ZeroDivisionError), training(PLANNED, "mine", first=True):
        raise ZeroDivisionError
    assert ledger.news()[Figure("sskt_trials", WORK, (("state", "running"),))] == 0
