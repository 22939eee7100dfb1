import pytest

from cluster.stored import is_object


@pytest.mark.parametrize("key", ["a", "a/b", "a.json", ".folder/a"])
def test_names_are_objects(key):
    assert is_object(key)


@pytest.mark.parametrize("key", [".a", "a/.writing-x", "a/", ""])
def test_names_with_a_dot_and_folders_are_not(key):
    assert not is_object(key)
