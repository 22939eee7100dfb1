import argparse
import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.jobs import Job, JobsError, State
from cluster.submit import MOST_BYTES, SENT_VERBS, changed_places, places, read_order, run_of
from pipeline.__main__ import make_parser


@pytest.fixture
def mine(tmp_path):
    """Writes an experiment file and returns its path."""

    def write(text="storage: s3://bucket/prefix\n", name="mine.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_an_order_is_the_pipelines_command_on_the_files_name(mine):
    order = read_order(mine(name="My first.yaml"), verb="train", further=["--set", "seeds=[0, 1]", "--trial", "3"])
    assert shlex.split(order.command) == [
        *("python", "-m", "pipeline", "train", "./My first.yaml", "--set", "seeds=[0, 1]", "--trial", "3")
    ]
    assert (order.verb, order.file, order.text) == ("train", "My first.yaml", b"storage: s3://bucket/prefix\n")
    assert re.fullmatch(r"sskt-train-my-first-[0-9a-f]{10}", order.name)


def test_the_same_text_and_arguments_have_the_same_name_and_others_another(mine):
    texts = ["storage: /one\n", "storage: /other\n"]
    variants = [(text, verb, more) for text in texts for verb in SENT_VERBS for more in ((), ("--trial", "1"))]
    names = [read_order(mine(text), verb=verb, further=more).name for text, verb, more in variants]
    assert len(set(names)) == len(variants)
    assert names == [read_order(mine(text), verb=verb, further=more).name for text, verb, more in variants]
    assert read_order(mine(name="other.yaml")).name != read_order(mine()).name
    assert re.fullmatch(r"sskt-sweep-[0-9a-f]{10}", read_order(mine(name="Ä.yaml")).name)


def test_every_verb_that_can_be_sent_takes_an_experiment():
    [verbs] = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    taking = {name for name, verb in verbs.choices.items() if "experiment" in {a.dest for a in verb._actions}}
    assert set(SENT_VERBS) <= taking


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has to hold fields"),
        ("- a list", "has to hold fields"),
        ("storage: [", "this is not YAML: "),
        ("storage: /x\n" + "#" * MOST_BYTES, f"an experiment file has {MOST_BYTES} at most"),
        (
            "storage: runs/demo",
            "storage is 'runs/demo', a place of this machine; for a cluster write s3://bucket/prefix",
        ),
        ("storage: ~/runs", "storage is '~/runs'"),
        ("dataset: {kind: folder, path: pictures}", "dataset.path is 'pictures', a place of this machine"),
        ("dataset: {test_path: ../test}", "dataset.test_path is '../test'"),
        ("sources: {wise: {weights: wise.safetensors}}", "sources.wise.weights is 'wise.safetensors'"),
        ("target: {weights: nets/wise}", "for a cluster write a path from / on"),
    ],
)
def test_what_cannot_run_on_a_cluster_is_refused_in_one_line(mine, text, words):
    with pytest.raises(JobsError, match=re.escape(words)) as error:
        read_order(mine(text))
    assert "mine.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "storage: /shared/runs",
        "storage: s3://bucket/prefix",
        "storage: file:///shared",
        "dataset: {kind: digits, path: null}",
        "dataset: {path: /shared/pictures}",
        "sources: {lite: {weights: package}}",
        "sources: {wise: {weights: /shared/wise.safetensors}}",
    ],
)
def test_what_the_machines_can_find_is_sent(mine, text):
    assert read_order(mine(text)).text.decode() == text


def test_a_file_that_cannot_be_read_is_named(mine, tmp_path):
    with pytest.raises(JobsError, match=r"none\.yaml: the experiment file cannot be read"):
        read_order(str(tmp_path / "none.yaml"))
    with pytest.raises(JobsError, match="cannot be read"):
        read_order(str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobsError, match=r"binary\.yaml"):
        read_order(str(tmp_path / "binary.yaml"))


def test_changes_count_as_if_they_stood_in_the_file(mine):
    assert read_order(mine("storage: runs/demo"), further=["--set", "storage=/shared"])
    assert read_order(mine("storage: runs/demo"), further=["--set=storage=s3://b/p", "--trial", "1"])
    with pytest.raises(JobsError, match="storage is 'runs'"):
        read_order(mine(), further=["--set", "storage=runs"])


def test_places_are_found_at_any_depth():
    fields = {"storage": "a", "sources": {"x": {"weights": "b"}, "path": {"weights": 3}}, "views": ["path"], 7: None}
    assert dict(places(fields)) == {"storage": "a", "sources.x.weights": "b"}
    assert dict(places(fields | {"laptop": {"storage": "c"}})) == dict(places(fields))
    assert changed_places(["--set", "dataset.path=/a=b", "--set=training.lr=1", "x", "path"]) == {
        "dataset.path": "/a=b"
    }


def job(name: str, state: State) -> Job:
    return Job(name=name, verb="sweep", experiment="mine.yaml", state=state, started=0)


@given(st.lists(st.sampled_from(State), max_size=6), st.lists(st.sampled_from(["sskt-b", "sskt-a-x", "sskt-a-2-2"])))
def test_a_run_is_taken_up_while_it_lives_and_numbered_after(states, others):
    """Whatever other jobs there are, and in whatever order they come."""
    runs = [job("sskt-a" if number == 1 else f"sskt-a-{number}", state) for number, state in enumerate(states, start=1)]
    name, alive = run_of("sskt-a", [*reversed(runs), *(job(other, State.RUNNING) for other in others)])
    living = [run.name for run in runs if run.state.alive]
    assert alive == bool(living)
    assert name == living[-1] if living else name not in {run.name for run in runs}
    if not living:
        assert name == ("sskt-a" if not runs else f"sskt-a-{len(runs) + 1}")
