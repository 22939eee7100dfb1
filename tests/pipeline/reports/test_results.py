"""A page of results follows what is stored, and its rows are held against new trainings."""

import re

import pytest

from pipeline.planning.experiment import LAPTOP
from pipeline.reports.results import Tried, rendered, tables, try_again
from sskt.errors import InputError


def mark(words: str, table: str = "") -> str:
    return f"<!-- results: {words} -->\n{table}<!-- end of results -->"


def written(page, said=None):
    return rendered(page, say=(said if said is not None else []).append)


def test_marks_say_which_command_it_was():
    first, second = tables(f"{mark('a.yaml --laptop --set seeds=[1]', 'x')} and {mark('b.yaml')}")
    assert (first.file, first.changes, first.text) == ("a.yaml", (LAPTOP, "seeds=[1]"), "x")
    assert (second.file, second.changes) == ("b.yaml", ())


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("nothing", "there is no `<!-- results: FILE -->`"),
        ("<!-- results: a.yaml -->\n", "has to end with `<!-- end of results -->`"),
        (mark("a.yaml --fast"), "'--fast' is not --laptop, nor --set with what it changes"),
        (mark("a.yaml --set"), "'--set' is not --laptop"),
    ],
)
def test_wrong_marks_are_named(page, says):
    with pytest.raises(InputError) as caught:
        tables(page)
    assert says in str(caught.value)


def test_tables_are_written_from_what_is_stored_and_all_else_stays(results_page):
    new = written(results_page)
    assert new.startswith("# Results\n\n<!-- results: ")
    assert new.endswith("<!-- end of results -->\nMore words.\n")
    assert new.count("| scratch ") == new.count("| dml ") == 1
    assert written(new) == new


def test_a_wide_table_is_written_and_its_rows_are_tried_too(results_page):
    wide = results_page.replace("--set ", "--set grid={training.lr:[0.1,0.2]} --set across=training.lr --set ", 1)
    (table,) = tables(wide)
    stages = table.stages(lambda line: None)
    plan = stages.pack()
    for planned in plan.trials:
        stages.train(planned, plan, in_process=True)
    new = written(wide)
    assert "| trial   | lr 0.1 " in new
    assert new.count("| scratch ") == new.count("| dml ") == 1
    assert written(new) == new
    tried = try_again(new, rows=9, seeds=1, draw=0, say=lambda line: None)
    assert len(tried) == 4
    assert all(one.stands for one in tried)
    number = new.split("| dml ")[1].split("|")[2]
    changed = try_again(new.replace(number, " 99.9 ± 0.1 "), rows=9, seeds=1, draw=0, say=lambda line: None)
    assert {one.stands for one in changed if ": dml" in one.name} == {False}
    assert {one.stands for one in changed if ": scratch" in one.name} == {True}


def test_tables_whose_results_or_data_are_elsewhere_stay(results_page, tmp_path):
    said: list[str] = []
    new = written(results_page)
    (table,) = tables(new)
    moved = new.replace("--set ", f"--set storage={tmp_path}/other --set ", 1)
    gone = new.replace("--set ", f"--set 'dataset={{kind: folder, path: {tmp_path}/gone}}' --set ", 1)
    assert written(moved + gone + new, said) == moved + gone + new
    assert said[0] == f"results {table.name}: left alone: none of its results is on '{tmp_path}/other'"
    assert said[1].startswith(f"results {table.name}: left alone: dataset.path ")
    assert len(said) == 2
    assert [one.name for one in try_again(moved + new, rows=5, seeds=1, draw=0, say=said.append)] != []


def test_a_table_that_shows_more_than_is_stored_stays(results_page):
    said: list[str] = []
    new = written(results_page)
    (table,) = tables(new)
    stages = table.stages(lambda line: None)
    planned = stages.pack().trials[0]
    stages.storage.delete(f"results/{planned.run_key}.json")
    assert written(new, said) == new
    with pytest.raises(InputError):
        try_again(new, rows=1, seeds=1, draw=0, say=said.append)
    left = (
        f"results {table.name}: left alone: only 3 of its results, of which it shows 4, are on {stages.storage.uri!r}"
    )
    assert said == [left, left]
    fewer = re.sub(r"\d+ of (\d+) trials", r"2 of \1 trials", new)
    assert "; 3 of 4 trials done" in written(fewer), "what has grown is written, complete or not"


def test_rows_are_trained_again_with_seeds_that_are_new(results_page):
    told: list[str] = []
    tried = try_again(written(results_page), rows=5, seeds=2, draw=0, say=told.append)
    assert len(tried) == 2
    assert all(one.stands and len(one.again) == 2 for one in tried)
    assert [line.split(",")[1].split(":")[0] for line in told if line.startswith("train ")] == [
        " seed 2",
        " seed 3",
    ] * 2
    (chosen,) = try_again(written(results_page), rows=1, seeds=2, draw=3, say=told.append)
    assert chosen in tried


def test_a_row_that_was_changed_by_hand_does_not_hold(results_page):
    new = written(results_page)
    number = next(cell for cell in new.split("|") if "±" in cell)
    changed = new.replace(number, " 99.9 ± 0.1 ")
    assert [one.stands for one in try_again(changed, rows=2, seeds=1, draw=0, say=lambda line: None)].count(False) >= 1


def test_a_row_holds_where_the_new_mean_is_expected():
    row = Tried("x", True, "", (80.0, 90.0), 84.0, 86.0)
    assert row.holds
    assert not Tried("x", False, "", (85.0,), 84.0, 86.0).holds
    assert not Tried("x", True, "", (87.0,), 84.0, 86.0).holds


def test_a_table_without_spread_has_nothing_to_hold_against(results_page):
    with pytest.raises(InputError, match="no row has two seeds or more"):
        try_again(results_page.replace("seeds=[0, 1]", "seeds=[0]"), rows=1, seeds=1, draw=0, say=lambda line: None)
