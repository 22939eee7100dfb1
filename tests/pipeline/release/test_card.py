"""The card says what is, and is read back strictly."""

import json

import pytest

from pipeline.release.card import Card, read_card, readme
from sskt.errors import InputError

CARD = Card(
    name="photos", architecture="resnet18", classes=tuple(f"class {number}" for number in range(25)), multi_label=False,
    channels=3, image_size=32, method="sskt [imagenet]", sources={"imagenet": "efficientnet_lite0, weights 0123"},
    dataset="photos", fingerprint="f" * 64, training_images=900, metric="accuracy", validation=81.25, test=79.5,
    run_key="abcdef", seed=3, versions={"torch": "2.14.1"},
)  # fmt: skip


def test_a_card_comes_back_the_same():
    assert read_card(CARD.to_json().encode(), label="model.json") == CARD


@pytest.mark.parametrize(
    ("change", "place"),
    [({"classes": 7}, "classes"), ({"image_size": "large"}, "image_size"), ({"seed": None}, "seed")],
)
def test_a_changed_card_names_the_field(change, place):
    text = json.dumps(json.loads(CARD.to_json()) | change).encode()
    with pytest.raises(InputError, match=rf"model\.json: {place}: .*; it has to be what `export` wrote"):
        read_card(text, label="model.json")


def test_no_json_is_refused():
    with pytest.raises(InputError, match=r"model\.json: the file"):
        read_card(b"\x80", label="model.json")


def test_people_read_what_it_is_and_how_to_use_it():
    text = readme(CARD, differences={"model.pt2": 0.0, "model.onnx": 2e-7})
    assert "Accuracy 81.2 % on the validation split, 79.5 % on the test split" in text
    assert "and 5 more (model.json)" in text
    assert "imagenet (efficientnet_lite0, weights 0123)" in text
    assert "| model.onnx | any ONNX runtime | 2e-07 |" in text
    assert "torch.zeros(1, 3, 32, 32, dtype=torch.uint8)" in text
    compiled = [block.partition("```")[0] for block in text.split("```python\n")[1:]]
    assert len(compiled) == 2
    for block in compiled:
        compile(block, "README.md", "exec")
