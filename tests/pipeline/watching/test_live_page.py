"""A page that follows a sweep: written where trials have ended, loaded again by itself, and left alone in the end."""

import re
import shutil
import threading
import time

import pytest

from pipeline.__main__ import main
from pipeline.reports.report import report_experiment
from pipeline.reports.write import write_report
from pipeline.watching import live_page
from pipeline.watching.live_page import EVERY, LivePage
from pipeline.watching.snapshot import Watcher
from tests.made_up import fill, make_plan

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
CHROMIUM = shutil.which("chromium")
TEXT = """
training: {epochs: 5, batch_size: 64, lr: 0.05}
methods:
  - {method: scratch}
  - {method: sskt, sources: [wise]}
seeds: [0, 1]
"""
REFRESH = f'<meta http-equiv="refresh" content="{EVERY}">'


class Sweep:
    """One whose trials end when a test says so."""

    def __init__(self, folder):
        self.plan, self.storage = make_plan(folder, TEXT)
        self.results = {one.run_key: one for one in fill(self.plan, self.storage)}
        self.results = {f"results/{key}.json": self.storage.read(f"results/{key}.json") for key in self.results}
        for key in self.results:
            self.storage.delete(key)
        self.watcher, self.page = Watcher(self.plan, self.storage), LivePage(self.plan, self.storage)

    def end(self, count):
        for _ in range(count):
            self.storage.write(*self.results.popitem())

    def follow(self, now):
        return self.page.follow(self.watcher.look(), now=now)

    @property
    def text(self):
        return self.storage.read("reports/made_up.html").decode()


@pytest.fixture
def sweep(tmp_path):
    return Sweep(tmp_path)


def test_it_is_written_when_trials_have_ended_but_not_at_every_look(sweep):
    assert sweep.follow(0)
    assert not sweep.follow(EVERY + 1), "nothing has ended since"
    sweep.end(1)
    assert sweep.follow(EVERY + 2)
    sweep.end(1)
    assert not sweep.follow(EVERY + 3), "too early"
    assert sweep.follow(2 * EVERY + 3)
    assert len(re.findall("</tr>", sweep.text)) > 2


def test_it_loads_itself_again_until_the_sweep_is_over(sweep):
    sweep.end(2)
    sweep.follow(0)
    assert REFRESH in sweep.text
    assert f"loads itself again every {EVERY} s" in sweep.text
    sweep.end(2)
    assert sweep.follow(1), "the end is written at once"
    write_report(sweep.plan, report_experiment(sweep.plan, sweep.storage), sweep.storage)
    usual = sweep.text
    assert "refresh" not in usual
    assert not sweep.follow(100)
    assert sweep.text == usual


def test_its_policy_is_the_one_of_every_page(sweep):
    sweep.follow(0)
    policy = re.search(r'"Content-Security-Policy" content="([^"]*)"', sweep.text)[1]
    sweep.end(4)
    sweep.follow(1)
    assert f'content="{policy}"' in sweep.text
    assert policy.startswith("default-src 'none';")


def test_watch_writes_it_beside_what_it_shows(sweep, tmp_path, capsys, monkeypatch):
    pages, slept = [], time.sleep

    def sleep(seconds):
        if threading.current_thread() is not threading.main_thread():  # of other tests, some still count figures
            slept(seconds)
            return
        pages.append((seconds, REFRESH in sweep.text))
        sweep.end(2)

    monkeypatch.setattr("pipeline.watching.verbs.time.sleep", sleep)
    assert main(["watch", str(tmp_path / "made_up.yaml"), "--page"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"page    {sweep.plan.experiment.storage}/reports/made_up.html"
    assert "4 done" in said[-1]
    assert pages == [(EVERY, True)] * 2
    assert REFRESH not in sweep.text


def test_one_look_and_a_page_that_follows_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        main(["watch", "x.yaml", "--once", "--page"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; apt-get install chromium")
def test_a_browser_that_has_it_open_shows_what_is_new(sweep, monkeypatch):
    monkeypatch.setattr(live_page, "EVERY", 1)
    sweep.end(2)
    sweep.follow(0)
    with playwright.sync_playwright() as started:
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        browser = started.chromium.launch(executable_path=CHROMIUM, args=options)
        tab, wrong = browser.new_page(), []
        tab.on("console", lambda message: wrong.append(message.text))
        tab.goto(sweep.storage.path("reports/made_up.html").as_uri())
        assert "This sweep goes on" in tab.inner_text("header")
        sweep.end(2)
        sweep.follow(1)
        tab.get_by_text("This sweep goes on").wait_for(state="hidden", timeout=20_000)
        assert wrong == []
        browser.close()
