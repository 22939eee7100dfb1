"""The documents keep up with the code."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from sskt.methods import METHODS

ROOT = Path(__file__).parent.parent


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


@pytest.mark.parametrize(
    "path", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_inside_the_project_lead_somewhere(path):
    for target in re.findall(r"\]\((?!http)([^)#]+)", (ROOT / path).read_text()):
        assert (ROOT / path).parent.joinpath(target).exists(), target
