from pathlib import Path

import pytest

from sskt.datasets.voc import VOC_CLASSES, read_annotation
from sskt.errors import InputError


def write_annotation(file: Path, *objects: tuple[str, int]) -> Path:
    """As VOC writes it; an object is its name and whether it is difficult."""
    parts = "<part><name>head</name><bndbox/></part>"
    listed = "".join(
        f"<object><name>{name}</name><pose>Left</pose><difficult>{difficult}</difficult>{parts}</object>"
        for name, difficult in objects
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"<annotation><filename>{file.stem}.jpg</filename>{listed}</annotation>\n")
    return file


def classes(*names: str) -> tuple[int, ...]:
    return tuple(VOC_CLASSES.index(name) for name in names)


def test_the_classes_are_in_alphabetical_order():
    assert len(set(VOC_CLASSES)) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)


@pytest.mark.parametrize(
    ("objects", "holds", "ignored"),
    [
        ([], [], []),
        ([("dog", 0), ("person", 0), ("dog", 0)], ["dog", "person"], []),
        ([("sofa", 1), ("cat", 0)], ["cat"], ["sofa"]),
        ([("chair", 1), ("chair", 0)], ["chair"], []),
        ([("chair", 0), ("chair", 1)], ["chair"], []),
        ([("tvmonitor", 1), ("aeroplane", 1), ("aeroplane", 1)], [], ["aeroplane", "tvmonitor"]),
    ],
)
def test_a_class_of_difficult_objects_only_is_unknown(tmp_path, objects, holds, ignored):
    file = write_annotation(tmp_path / "1.xml", *objects)
    assert read_annotation(file) == (classes(*holds), classes(*ignored))


def test_an_object_without_a_mark_is_not_difficult(tmp_path):
    file = tmp_path / "1.xml"
    file.write_text("<annotation><object><name> bird\n</name></object></annotation>")
    assert read_annotation(file) == (classes("bird"), ())


def test_what_is_no_annotation_is_named(tmp_path):
    file = write_annotation(tmp_path / "1.xml", ("zebra", 0))
    with pytest.raises(InputError) as caught:
        read_annotation(file)
    assert str(caught.value) == (
        f"dataset.path: {str(file)!r} names an object 'zebra', which is none of the 20 of PASCAL VOC"
    )
    file.write_text("<annotation><object>")
    with pytest.raises(InputError, match=r"^dataset.path: '.*/1.xml' is not a readable annotation: no element found"):
        read_annotation(file)
    with pytest.raises(InputError, match=r"'.*/none.xml' is not a readable annotation: .*No such file"):
        read_annotation(tmp_path / "none.xml")
