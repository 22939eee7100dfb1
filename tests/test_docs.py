"""The documents keep up with the code."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import cluster.__main__
import pipeline.__main__
from sskt.methods import METHODS

ROOT = Path(__file__).parent.parent
PARSERS = {"pipeline": pipeline.__main__.make_parser, "cluster": cluster.__main__.make_parser}
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def sections() -> dict[str, str]:
    text = (ROOT / "docs" / "methods.md").read_text()
    parts = re.split(r"^## (\S+)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_method_has_a_section_and_no_other():
    assert set(sections()) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_section_names_every_option(name):
    section = sections()[name]
    for field in fields(METHODS[name].Options):
        short = {"weight": r"\bw\b|weight", "temperature": r"\bT\b|temperature"}.get(field.name, rf"\b{field.name}\b")
        assert re.search(short, section), f"{name}: {field.name} is not explained"


@pytest.mark.parametrize("path", DOCUMENTS)
def test_links_inside_the_project_lead_somewhere(path):
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / path).read_text()):
        assert (ROOT / path).parent.joinpath(target).exists(), target


COMMAND = re.compile(r"python -m (pipeline|cluster) ([^`\n]*)")
MENTIONED = {"VERB FILE", "VERB ..."}
"""What stands for any command."""


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """The program and the arguments of every command that a text names, less what ends it in a shell."""
    for program, rest in COMMAND.findall(text):
        typed = rest.partition("  #")[0].partition(" # ")[0]
        typed = re.sub(r"\.\.\.$|[.,;:)]+$", "", typed.strip()).strip()
        if typed in MENTIONED:
            continue
        quoted = typed.count("'") % 2  # the end of `ray exec FILE 'python -m ...'`
        yield program, shlex.split(typed.removesuffix("'") if quoted else typed)


def test_commands_are_found_as_a_shell_would_take_them():
    text = """
`python -m pipeline sweep a.yaml`, then
$ python -m cluster submit a.yaml --verb train -- --trial 3  # sends it
ray exec b.yaml 'X=1 python -m cluster doctor --nodes 3'
python -m pipeline train a.yaml --set "seeds=[0, 1]"
"""
    assert list(commands(text)) == [
        ("pipeline", ["sweep", "a.yaml"]),
        ("cluster", ["submit", "a.yaml", "--verb", "train", "--", "--trial", "3"]),
        ("cluster", ["doctor", "--nodes", "3"]),
        ("pipeline", ["train", "a.yaml", "--set", "seeds=[0, 1]"]),
    ]


def refused(program: str, arguments: list[str]) -> bool:
    """Whether the parser that the program itself uses ends with a mistake."""
    before, after = arguments, list[str]()
    if program == "cluster" and "--" in arguments:  # the verb's own arguments, which go to the pipeline
        place = arguments.index("--")
        before, after = arguments[:place], arguments[place + 1 :]
    try:
        parsed = PARSERS[program]().parse_args(before)
    except SystemExit:
        return True
    return bool(after) and refused("pipeline", [parsed.verb, parsed.experiment, *after])


@pytest.mark.parametrize("path", DOCUMENTS)
def test_every_command_is_one_that_there_is(path):
    wrong = [one for one in commands((ROOT / path).read_text()) if refused(*one)]
    assert wrong == []


def test_a_command_that_there_is_not_would_be_noticed():
    for text in ("pipeline swep a.yaml", "pipeline report a.yaml --jsn", "cluster submit a.yaml -- --no-such-flag"):
        (found,) = commands(f"`python -m {text}`")
        assert refused(*found)
    assert sum(len(list(commands((ROOT / path).read_text()))) for path in DOCUMENTS) > 30


def test_benchmarks_and_experiments_that_are_named_are_there():
    named = 0
    for path in DOCUMENTS:
        text = (ROOT / path).read_text()
        for name in re.findall(r"python -m benchmarks\.(\w+)", text):
            assert (ROOT / "benchmarks" / f"{name}.py").is_file(), f"{path}: {name}"
            named += 1
        for name in re.findall(r"\bexperiments/\w+\.yaml", text):
            assert (ROOT / name).is_file(), f"{path}: {name}"
            named += 1
    assert named >= 10
