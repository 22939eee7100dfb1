import pytest

from pipeline.planning.strict_yaml import parse_yaml
from sskt.errors import InputError


def test_numbers_are_numbers():
    assert parse_yaml("a: 1e-3\nb: 5\nc: 2.5E+2\nd: .5\ne: '1e-3'\nf: 1.0") == {
        "a": 0.001, "b": 5, "c": 250.0, "d": 0.5, "e": "1e-3", "f": 1.0,
    }  # fmt: skip


def test_a_mapping_in_a_list_may_do_without_braces():
    assert parse_yaml("ops: [pad_crop: 4, hflip]") == {"ops": [{"pad_crop": 4}, "hflip"]}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", "line 1: the field 'a' is written twice"),
        ("x:\n  b: 1\n  b: 1", "line 2: the field 'b' is written twice"),
        ("a: [1", "this is not YAML"),
        ("- 1", "has to hold fields"),
        ("", "has to hold fields"),
        ("a: !!python/object:os.system x", "this is not YAML"),
    ],
)
def test_mistakes_are_named(text, says):
    with pytest.raises(InputError) as caught:
        parse_yaml(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
