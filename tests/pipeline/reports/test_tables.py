import csv
import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.storage import FolderStorage
from pipeline.reports.costs import Cost
from pipeline.reports.report import Ending, Report, Row
from pipeline.reports.tables import (
    BEST_ROWS,
    MOST_ROWS,
    table,
    to_csv,
    to_json,
    to_markdown,
    to_parquet,
    to_terminal,
    write_tables,
)
from pipeline.statistics import Change, summarise

NO_COST = Cost()
LAST = {"epoch": 2, "loss": 0.5, "validation_accuracy": 71.234}


def ended(state="done", seed=0, *, label="scratch", epoch=30, validation=None, **more):
    more = {"point": {}, "run_key": f"{label} {seed}", "method": label.split()[0], "sources": ()} | more
    return Ending(label=label, seed=seed, state=state, epoch=epoch, epochs=30, validation=validation, **more)


CUT = ended("stopped", label="sskt", epoch=3, validation=61.2, reason="asha: below its rung")


def row(label="scratch", *, scores=(), validation=None, **more):
    made = Row(label, label.split()[0], wanted=3, **more)
    made.scores = dict(enumerate(scores))
    made.validation_scores = dict(enumerate(scores if validation is None else validation))
    if scores:
        made.summary = summarise(list(made.scores.values()))
        made.validation = summarise(list(made.validation_scores.values()))
    return made


def report(*rows, trials=(), search_lines=()):
    return Report("small: 3 trials", "accuracy", list(rows), list(trials), tuple(search_lines), NO_COST)


def test_a_row_shows_mean_spread_number_and_change():
    scratch = row(scores=(80.0, 82.0, 84.0))
    sskt = row("sskt wise", scores=(84.0, 85.0), change=Change(4.0, 1.516, 6.484, 2))
    assert table(report(scratch, sskt, row("kd wise"))) == [
        ("trial", "test accuracy %", "n", "against scratch [95 %]", "verdict"),
        ("scratch", "82.0 ± 2.0", "3", "", ""),
        ("sskt wise", "84.5 ± 0.7", "2 of 3", "+4.0 [+1.5, +6.5]", "helps"),
        ("kd wise", "-", "0 of 3", "", ""),
    ]


@pytest.mark.parametrize(
    ("trial", "told"),
    [
        (ended("failed", epoch=0, reason="no patience"), "1 failed: no patience"),
        (ended("failed", epoch=0, reason="no patience", tries=2), "1 failed: no patience (2 tries)"),
        (
            ended("failed", epoch=2, validation=71.234, reason="diverged", last=LAST),
            "1 failed: diverged (validation accuracy 71.2 % after epoch 2 of 30)",
        ),
        (
            ended("failed", epoch=2, validation=71.234, reason="died", tries=2, last=LAST),
            "1 failed: died (2 tries, validation accuracy 71.2 % after epoch 2 of 30)",
        ),
        (CUT, "1 stopped: asha: below its rung (validation accuracy 61.2 % after epoch 3 of 30)"),
    ],
)
def test_what_did_not_end_well_stands_in_the_table_with_all_that_is_known(trial, told):
    assert table(report(row(unfinished=[trial])))[1][4] == told


def test_failures_come_before_what_was_stopped_and_a_long_reason_leaves_room_for_the_rest():
    failed = ended("failed", reason="word " * 100, tries=2)
    told = table(report(row(unfinished=[CUT, failed, ended("failed", seed=1, reason="other")])))[1][4]
    assert told.startswith("2 failed: word word")
    assert told.endswith(" [...] (2 tries)")
    assert len(told) < 130


def test_the_markdown_is_a_table_whose_columns_line_up():
    lines = to_markdown(report(row(scores=(80.0,)), row("sskt wise, learn_from all"))).splitlines()
    assert lines[0] == "small: 3 trials"
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "trial",
        "test accuracy %",
        "n",
        "against scratch [95 %]",
        "verdict",
    ]
    assert len({len(line) for line in lines[2:]}) == 1
    assert set(lines[3]) == {"|", "-"}


def test_what_is_said_of_searches_stands_below_the_table():
    said = to_markdown(report(row(), search_lines=["sskt wise: best of 24", "kd wise: best of 12"]))
    assert said.endswith("|\n\n- sskt wise: best of 24\n- kd wise: best of 12\n")


def test_a_table_that_fits_is_shown_whole():
    whole = report(*(row(f"trial {number}") for number in range(MOST_ROWS)))
    assert to_terminal(whole, whole="x.csv") == to_markdown(whole)


def test_of_a_longer_table_the_best_by_validation_are_shown():
    """What is best on the test split is hidden at the bottom of validation, and must not be shown."""
    validation = np.random.default_rng(0).permutation(100).astype(float).tolist()
    rows = [row(f"trial {v:.0f}", scores=(200.0 - v,), validation=(v,)) for v in validation]
    rows += [row("none done", unfinished=[ended("failed", reason="died"), CUT]), row("never tried")]
    said = to_terminal(report(*rows), whole="runs/x.csv")
    shown = [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("| trial ")][1:]
    assert shown == [f"trial {v}" for v in range(99, 99 - BEST_ROWS, -1)]
    assert said.endswith("The 30 best by validation; 72 more rows (failed trials: 1) are in runs/x.csv\n")
    assert "200.0" in to_markdown(report(*rows)), "the file has all"


def test_a_wide_table_says_what_its_cells_mean_and_is_cut_row_by_row_when_long():
    cells = [
        row(f"trial {n}, lr {lr}", name=f"trial {n}", scores=(50.0,), point={"training.lr": lr})
        for n in range(50)
        for lr in (1, 2)
    ]
    wide = replace(report(*cells), across="training.lr")
    assert to_terminal(wide, whole="x.csv") == to_markdown(wide)
    lines = to_markdown(wide).splitlines()
    assert lines[2].split() == ["|", "trial", "|", "lr", "1", "|", "lr", "2", "|"]
    assert len(lines) == 2 + 2 + 50 + 2
    assert lines[-1].startswith("Test accuracy in %, mean ± standard deviation over seeds (1); in brackets the change")
    cells += [row(f"late {n}", scores=(50.0,), name=f"late {n}") for n in range(MOST_ROWS)]
    cut = to_terminal(replace(wide, rows=cells), whole="x.csv")
    assert f"The {BEST_ROWS} best by validation; {len(cells) - BEST_ROWS} more rows are in x.csv" in cut
    assert "against scratch [95 %]" in cut


def test_the_csv_has_a_line_for_each_trial_that_ended():
    name, point = "scratch, lr 0.1", {"training.lr": 0.1}
    text = to_csv(
        report(
            row(),
            trials=[
                ended(label=name, test=80.5, validation=70.0, point=point),
                ended("failed", 1, label=name, epoch=2, validation=71.5, reason='a "reason", 2', tries=2, point=point),
                replace(CUT, point={"options.w": [1, 2], "sources": ["wise", "fool"]}, sources=("wise", "fool")),
                ended("failed", label="kd", epoch=0, reason="died"),
            ],
        )
    )
    assert text.splitlines()[0] == (
        "trial,seed,test_accuracy,failure,validation_accuracy,state,epoch,epochs,tries,reason,"
        "best_validation_accuracy,best_epoch,seconds,method,sources,run_key,training.lr,options.w"
    )
    lines = list(csv.DictReader(text.splitlines()))
    columns = {name: [line[name] for line in lines] for name in lines[0]}
    assert columns["trial"] == [name, name, "sskt", "kd"]
    assert columns["seed"] == ["0", "1", "0", "0"]
    assert columns["state"] == ["done", "failed", "stopped", "failed"]
    assert columns["test_accuracy"] == ["80.5", "", "", ""]
    assert columns["validation_accuracy"] == ["70.0", "71.5", "61.2", ""]
    assert columns["failure"] == ["", 'a "reason", 2', "", "died"]
    assert columns["reason"] == ["", 'a "reason", 2', "asha: below its rung", "died"]
    assert columns["epoch"] == ["30", "2", "3", "0"]
    assert columns["epochs"] == ["30"] * 4
    assert columns["tries"] == ["1", "2", "1", "1"]
    assert columns["training.lr"] == ["0.1", "0.1", "", ""]
    assert columns["options.w"] == ["", "", "[1,2]", ""]
    assert columns["sources"] == ["", "", "wise+fool", ""]


def test_the_parquet_has_the_lines_of_the_csv_and_its_numbers_are_numbers():
    done = ended(
        test=80.5, validation=70.25, best_validation=71.0, best_epoch=2, seconds=1.5, point={"training.lr": 0.1}
    )
    said = report(row(), trials=[done, ended("failed", 1, reason="died")])
    found = pq.read_table(io.BytesIO(to_parquet(said))).to_pylist()
    assert (found[0]["test_accuracy"], found[0]["best_epoch"], found[1]["test_accuracy"]) == (80.5, 2, None)
    spelled = [{name: "" if value is None else str(value) for name, value in line.items()} for line in found]
    assert spelled == list(csv.DictReader(to_csv(said).splitlines()))


def test_a_report_without_trials_is_written_too():
    assert pq.read_table(io.BytesIO(to_parquet(report()))).num_rows == 0
    assert json.loads(to_json(report()))["cost"]["speed_up"] is None


def test_the_written_tables_say_the_same_in_four_forms(tmp_path):
    storage = FolderStorage(str(tmp_path))
    one = row(scores=(80.0, 82.0, 84.0), validation=(70.0, 71.0, 72.0))
    failed = ended("failed", 1, label="sskt", epoch=2, reason="died", tries=2, last=LAST)
    said = report(one, row("sskt", unfinished=[failed]), trials=[failed, CUT])
    write_tables(said, storage, name="small")
    assert storage.read("reports/small.md").decode() == to_markdown(said)
    assert storage.read("reports/small.csv").decode() == to_csv(said)
    assert storage.read("reports/small.parquet") == to_parquet(said)
    whole = json.loads(storage.read("reports/small.json"))
    assert whole["rows"][0]["scores"] == {"0": 80.0, "1": 82.0, "2": 84.0}
    assert whole["rows"][0]["summary"]["mean"] == 82.0
    assert whole["rows"][0]["validation"]["mean"] == 71.0
    assert whole["rows"][1]["unfinished"][0] == whole["trials"][0]
    assert (whole["trials"][0]["last"], whole["trials"][0]["tries"]) == (LAST, 2)
    assert (whole["trials"][1]["state"], whole["trials"][1]["epoch"]) == ("stopped", 3)
