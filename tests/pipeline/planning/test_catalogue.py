from dataclasses import dataclass, fields

import pytest

from pipeline.planning.catalogue import catalogue, describe, documents
from sskt.methods import METHODS, Needs


@dataclass(frozen=True, kw_only=True)
class Options:
    """Whatever can be chosen."""

    weight: float = 0.5
    """How much.

    And why.
    """
    plain: int = 3


def test_doc_strings_under_fields_are_found():
    assert documents(Options) == {"weight": "How much. And why."}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_and_every_option_is_listed_with_its_default(name):
    lines = describe(name, METHODS[name]).splitlines()
    assert len(lines[0]) > len(name) + 20
    assert lines[1].startswith("  needs ")
    for field in fields(METHODS[name].Options):
        assert any(line.startswith(f"    {field.name}: {field.default}") for line in lines)
    assert describe(name, METHODS[name]) in catalogue()


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_can_learn_from_mixed_images_say_so(name):
    assert ("\n  can learn from mixed images" in describe(name, METHODS[name])) == METHODS[name].mixable


def test_needs_are_those_of_the_defaults():
    assert "needs logits of its sources" in describe("kd", METHODS["kd"])
    assert "needs no cache" in describe("finetune", METHODS["finetune"])


GRAPH = "the 5 nearest neighbours of every image by each source's embedding"


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        (Needs(), "no cache"),
        (Needs(pool=True, pair=True), "no cache; unlabelled images; two views of every image"),
        (Needs(outputs=("logits", "embedding")), "logits, embedding of its sources"),
        (Needs(outputs=("logits",), turned=True), "logits of its sources; turned views"),
        (Needs(graph=5), GRAPH),
        (Needs(outputs=("embedding",), graph=5, pool=True), f"embedding of its sources; {GRAPH}; unlabelled images"),
    ],
)
def test_needs_are_said_in_words(needs, says):
    class Asking(METHODS["scratch"]):
        """Asks."""

        @classmethod
        def needs(cls, options):
            return needs

    assert describe("asking", Asking).splitlines()[1] == f"  needs {says}"
