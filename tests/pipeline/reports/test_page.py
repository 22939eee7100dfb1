"""The page in a real browser: its numbers are the Parquet's, it asks nobody, fits a phone, and runs nobody's words."""

import io
import re
import shutil
import tomllib
from collections import defaultdict
from statistics import fmean, stdev

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.reports.page import FOLDER
from pipeline.reports.report import report_experiment
from pipeline.reports.write import write_report
from pipeline.trials.results import write_failure
from tests.made_up import fill, make_plan

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium")

EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'> & \"co\" {{ 7 * 7 }}"
SMALL = """
training: {epochs: 6, batch_size: 64, lr: 0.05}
methods:
  - {method: scratch}
  - {method: sskt, sources: [wise]}
  - {method: sskt, sources: [fool]}
  - {method: kd, sources: [wise]}
  - {method: finetune, sources: [wise], label: %s}
seeds: [0, 1, 2, 3]
"""
LARGE = """
training: {epochs: 30, batch_size: 64, lr: 0.05}
methods:
  - {method: scratch}
  - {method: sskt, sources: [wise]}
  - {method: sskt, sources: [fool]}
  - {method: kd, sources: [wise]}
grid: {training.lr: [0.01, 0.02, 0.05, 0.1, 0.2], training.labels_per_class: [5, 10, 20, 40, 80]}
seeds: [0, 1, 2, 3, 4]
"""


class Shown:
    """A page that was written, and its Parquet."""

    def __init__(self, folder, text, *, name, failed=()):
        plan, storage = make_plan(folder, text, name=name)
        done = fill(plan, storage)
        for place in failed:
            storage.delete(f"results/{done[place].run_key}.json")
            last = {"epoch": 2, "validation_accuracy": 20.0}
            write_failure(storage, done[place].run_key, f"diverged {EVIL}", tries=2, last=last)
        self.file = storage.path(write_report(plan, report_experiment(plan, storage), storage))
        self.trials = pq.read_table(io.BytesIO(storage.read(f"reports/{name}.parquet"))).to_pylist()


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """A small sweep with hostile words in it, and one of 500 trials."""
    quoted = "'" + EVIL.replace("'", "''") + "'"
    small = Shown(tmp_path_factory.mktemp("small"), SMALL % quoted, name="small", failed=[1])
    return {"small": small, "large": Shown(tmp_path_factory.mktemp("large"), LARGE, name="large")}


@pytest.fixture(scope="module")
def browser():
    options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=options)
        yield running
        running.close()


def opened(browser, shown, *, width=1440, scheme="light"):
    """A tab that has the page open, and what went wrong in it."""
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab.wrong = []
    tab.on("console", lambda message: tab.wrong.append(message.text))
    tab.on("pageerror", lambda error: tab.wrong.append(str(error)))
    tab.on("request", lambda request: tab.wrong.append(request.url) if request.url != shown.file.as_uri() else None)
    tab.goto(shown.file.as_uri())
    return tab


@needs_chromium
@pytest.mark.parametrize("name", ["small", "large"])
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1440, "light"), (1440, "dark")])
def test_a_page_opens_without_a_word_of_complaint_and_without_sideways_scrolling(browser, shown, name, width, scheme):
    tab = opened(browser, shown[name], width=width, scheme=scheme)
    for summary in tab.locator("section summary").all()[:8]:
        summary.click()
    tab.locator(".trial summary").nth(3).click()
    tab.wait_for_selector(".trial .inside svg")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.wrong == []
    assert tab.evaluate("window.hacked") is None
    assert shown[name].file.stat().st_size < 3_000_000
    tab.close()


@needs_chromium
@pytest.mark.parametrize("name", ["small", "large"])
def test_the_numbers_of_the_table_are_those_of_the_parquet(browser, shown, name):
    tab = opened(browser, shown[name])
    cells = "rows => rows.map(row => [...row.cells].map(cell => cell.dataset.value ?? cell.textContent.trim()))"
    lines = tab.locator("table.rows tbody tr").evaluate_all(cells)
    scores = defaultdict(dict)
    for trial in shown[name].trials:
        if trial["state"] == "done":
            scores[trial["trial"]][trial["seed"]] = trial["test_accuracy"]
    assert {line[0] for line in lines} == set(scores)
    for label, test, n, change, *_ in lines:
        mine = scores[label]
        assert (float(test), int(n)) == (pytest.approx(fmean(mine.values())), len(mine))
        baseline = scores[
            "scratch" + label.partition(",")[1] + label.partition(",")[2] if name == "large" else "scratch"
        ]
        if not label.startswith("scratch"):
            shared = mine.keys() & baseline.keys()
            assert float(change) == pytest.approx(fmean(mine[seed] - baseline[seed] for seed in shared))
    spread = tab.locator("table.rows tbody tr").first.locator("small").first.text_content()
    assert spread == f"± {stdev(scores[lines[0][0]].values()):.1f}"
    tab.close()


@needs_chromium
def test_what_people_wrote_is_shown_as_they_wrote_it(browser, shown):
    tab = opened(browser, shown["small"])
    assert tab.locator("table.rows tbody th").all_text_contents().count(EVIL) == 1
    assert f"diverged {EVIL} (2 tries)" in tab.locator(".failed li").text_content()
    names = tab.locator(".trial .who").all_text_contents()
    assert f"{EVIL}, seed 3" in names
    tab.locator(".trial summary").nth(1).click()
    assert tab.locator(".trial .inside p").nth(1).text_content() == f"diverged {EVIL}"
    assert tab.evaluate("window.hacked") is None
    assert tab.wrong == []
    tab.close()


@needs_chromium
def test_a_trial_opens_with_its_whole_spec_and_its_curves(browser, shown):
    tab = opened(browser, shown["large"])
    place = 321
    trial = shown["large"].trials[place]
    one = tab.locator(".trial").nth(place)
    one.locator("summary").click()
    inside = one.locator(".inside")
    assert trial["run_key"] in inside.locator("p").first.text_content()
    rows = inside.locator("tr").evaluate_all("rows => rows.map(row => [...row.cells].map(cell => cell.textContent))")
    spec = dict(rows)
    assert spec["trial.training.lr"] == trial["training.lr"]
    assert spec["trial.seed"] == str(trial["seed"])
    assert len(spec) > 30
    assert inside.locator("svg[role=img]").count() == 2
    assert inside.locator("polyline").first.get_attribute("points").count(",") == 30
    tab.close()


@needs_chromium
def test_headings_sort_and_the_filter_hides(browser, shown):
    tab = opened(browser, shown["large"])
    table = tab.locator("table.rows").first
    values = "rows => rows.map(row => Number(row.cells[1].dataset.value))"
    for expected in (True, False):
        table.locator("thead th").nth(1).press("Enter")
        found = table.locator("tbody tr").evaluate_all(values)
        assert found == sorted(found, reverse=expected)
    tab.locator(".filter input").fill("KD WISE, lr 0.05")
    assert tab.locator(".trial:visible").count() == 25
    tab.close()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_can_be_read(browser, shown, scheme):
    """WCAG's contrast: 4.5 for text, 3 for what is drawn."""
    tab = opened(browser, shown["small"], scheme=scheme)
    script = "name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"
    colour = {
        name: tab.evaluate(script, f"--{name}") for name in ("paper", "ink", "muted", "up", "down", "unsure", "card")
    }
    for name in ("ink", "muted", "up", "down", "unsure"):
        assert contrast(colour[name], colour["paper"]) >= 4.5, name
        assert contrast(colour[name], colour["card"]) >= 4.5, name
    for place in range(1, 8):
        assert contrast(tab.evaluate(script, f"--series-{place}"), colour["paper"]) >= 3, place
    tab.close()


def contrast(one, other):
    def light(colour):
        parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        return np.where(parts <= 0.03928, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    dark, bright = sorted((light(one), light(other)))
    return (bright + 0.05) / (dark + 0.05)


@needs_chromium
def test_on_paper_there_is_the_whole_table_and_no_list_of_trials(browser, shown):
    tab = opened(browser, shown["small"], width=718)  # A4 within its margins
    tab.emulate_media(media="print", color_scheme="dark")
    assert not tab.locator(".trials").is_visible()
    assert tab.locator("table.rows").first.is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 718
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.pdf(format="A4").count(b"/Type /Page\n") <= 8
    tab.close()


def test_the_page_names_no_place_that_could_be_asked(shown):
    html = shown["large"].file.read_text()
    assert set(re.findall(r"https?://[^\"'\s]+", html)) == {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    assert not re.search(r"(?:src|href)=\"(?!#|data:,)|url\((?!#)|@import|@font-face", html)


def test_a_sweep_that_has_not_begun_has_a_page_too(tmp_path):
    plan, storage = make_plan(tmp_path, SMALL % "other")
    html = storage.path(write_report(plan, report_experiment(plan, storage), storage)).read_text()
    assert "Nothing has been trained to its end yet." in html
    assert "There is nothing to compare yet." in html


def test_results_older_than_the_figures_of_classes_say_so(tmp_path):
    plan, storage = make_plan(tmp_path, SMALL % "other")
    fill(plan, storage, by_class=False)
    html = storage.path(write_report(plan, report_experiment(plan, storage), storage)).read_text()
    assert "These results are older than the figures of single classes" in html


def test_what_a_page_is_made_of_is_installed_with_it():
    project = tomllib.loads((FOLDER.parent.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["pipeline.reports"]
    there = {file.name for pattern in patterns for file in FOLDER.glob(pattern)}
    assert there == {"page.html", "page.css", "page.js", "published.csv"}
