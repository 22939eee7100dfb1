"""What is said of a released network: for programs (model.json) and for people (its README)."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.trials.results import Result
from sskt.errors import InputError
from sskt.metrics import TITLES
from sskt.sources import Source

SHOWN_CLASSES = 20


@dataclass(frozen=True, kw_only=True)
class Card:
    """Everything one has to know to use a network, and where it comes from."""

    name: str
    architecture: str
    classes: tuple[str, ...]
    multi_label: bool
    """Whether several classes may hold for an image: then each logit has a sigmoid of its own."""
    channels: int
    image_size: int
    """Side in pixels; images are brought to it by their shorter side and cut to a square, as in training."""
    method: str
    """As the rows of the report call it."""
    sources: dict[str, str]
    """What the target learned from beside its labels, by name: architecture and fingerprint of the weights."""
    dataset: str
    fingerprint: str
    training_images: int
    metric: str
    validation: float
    test: float
    """In %, after the last epoch."""
    run_key: str
    seed: int
    versions: dict[str, Any]

    def to_json(self) -> str:
        """Write it for programs."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"


_CARD = TypeAdapter(Card)


def read_card(text: bytes, *, label: str) -> Card:
    """Read what `to_json` wrote."""
    try:
        return _CARD.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{label}: {place}: {first['msg']}; it has to be what `export` wrote") from error


def make_card(planned: PlannedTrial, plan: Plan, result: Result, *, architecture: str) -> Card:
    """What there is to say of a trial's network."""
    trial, packed = planned.trial, plan.packed
    return Card(
        name=plan.experiment.name,
        architecture=architecture,
        classes=packed.classes,
        multi_label=packed.multi_label,
        channels=packed.channels,
        image_size=packed.size,
        method=trial.label,
        sources={name: _described(plan.sources[name]) for name in trial.sources},
        dataset=packed.name,
        fingerprint=packed.fingerprint,
        training_images=packed.pool,
        metric=result["metric"],
        validation=result["validation"][result["metric"]],
        test=result["test"][result["metric"]],
        run_key=planned.run_key,
        seed=trial.seed,
        versions=result["versions"],
    )


def _described(source: Source) -> str:
    identity = source.identity()
    return f"{identity['architecture']}, weights {str(identity['weights'])[:16]}"


def readme(card: Card, *, differences: dict[str, float]) -> str:
    """The model card; differences: by file, how far its logits are from those of the trained network."""
    names = ", ".join(f"`{name}`" for name in card.classes[:SHOWN_CLASSES])
    more = f" and {len(card.classes) - SHOWN_CLASSES} more (model.json)" if len(card.classes) > SHOWN_CLASSES else ""
    sources = "; ".join(f"{name} ({what})" for name, what in card.sources.items())
    learned = f", learning from {sources} beside its labels" if sources else ""
    several = "several may hold for an image" if card.multi_label else "one for every image"
    files = "\n".join(f"| {file} | {_USES[file]} | {difference:.1g} |" for file, difference in differences.items())
    return f"""# {card.name}: {card.architecture}

A classifier of images into {len(card.classes)} classes ({several}): {names}{more}.

Trained on {card.training_images} images of {card.dataset} by `{card.method}`{learned}, seed {card.seed}.
{TITLES[card.metric].capitalize()} {card.validation:.1f} % on the validation split, {card.test:.1f} % on the test split,
after the last epoch. It says nothing of images of another kind than those of {card.dataset}.

| file | use it with | its logits differ by |
|---|---|---|
| model.safetensors | safetensors and the same network, in torchvision or in code of your own; this project | |
{files}

The programs take uint8 images `[batch, {card.channels}, {card.image_size}, {card.image_size}]`, preprocessing is in
them. The weights have the names of the plain network; the header of their file says how pixels are normalised.
`model.json` has the classes in the order of the logits. The result is `{card.run_key}`, the data
`{card.fingerprint[:16]}`; {", ".join(f"{key} {value}" for key, value in card.versions.items())}.

```python
import torch
program = torch.export.load("model.pt2").module()
logits = program(torch.zeros(1, {card.channels}, {card.image_size}, {card.image_size}, dtype=torch.uint8))
```

```python
import numpy, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
images = numpy.zeros((1, {card.channels}, {card.image_size}, {card.image_size}), numpy.uint8)
logits = session.run(["logits"], {{"images": images}})[0]
```
"""


_USES = {
    "model.pt2": "PyTorch alone: `torch.export.load`",
    "model.onnx": "any ONNX runtime",
}
