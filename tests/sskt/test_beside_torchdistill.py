"""Our losses beside torchdistill's on the same numbers: equal in value and gradient, once what differs is undone.

A row of LOSSES has our loss, theirs, and, where the two differ by definition, ours with just that difference undone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchdistill.losses import mid_level

from sskt.embedding_losses import DISTANCES, correlations, directions
from sskt.losses import PRIMARY_LOSSES, soft_cross_entropy, soft_kl
from sskt.maps import attention_map
from sskt.methods.kd import KD, KDOptions
from sskt.relations import NORMALISATIONS, PRESETS, unit_rows

Loss = Callable[[Tensor, Tensor], Tensor]
Shapes = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

TOLERANCE = 1e-9
SEEDS = (0, 1, 2)
T = 3.0

SAME_WIDTH: Shapes = (((1, 4), (1, 4)), ((6, 10), (6, 10)), ((64, 5), (64, 5)))
TAPS: Shapes = (((2, 3, 4, 4), (2, 7, 4, 4)), ((8, 6, 5, 3), (8, 2, 5, 3)))
ANY_WIDTH: Shapes = (((4, 5), (4, 5)), ((8, 12), (8, 3)), ((64, 32), (64, 48)))

# Where theirs look for what ours are given.
MODULES = dict.fromkeys(("student_module_path", "teacher_module_path"), "here")
MODULES |= dict.fromkeys(("student_module_io", "teacher_module_io"), "output")
OUTPUTS = dict.fromkeys(("student_output_path", "teacher_output_path"), "here")
LINEAR = dict.fromkeys(("student_linear_path", "teacher_linear_path"), "here")
EMBED = dict.fromkeys(("student_embed_module_path", "teacher_embed_module_path"), "here")
ADAPTED = dict.fromkeys(("feature_adapter_path", "knowledge_translator_path"), "here")
OUTPUT = {"module_path": "here", "io": "output"}
TAP = {side: {"path": "here", "io": "output"} for side in ("student", "teacher")}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Losses of (student, source)."""

    ours: Loss
    theirs: Loss
    undone: Loss | None = None
    """Ours with what differs undone; none where nothing does."""
    shapes: Shapes = SAME_WIDTH


def told(
    loss: nn.Module, student: Tensor, source: Tensor, labels: Tensor | None = None, *more: Tensor, **of_student: Tensor
) -> Tensor:
    """Call one of theirs, which reads tensors by module and direction."""
    outputs = {name: {"output": output} for name, output in ({"here": student} | of_student).items()}
    return loss(outputs, {"here": {"output": source}}, labels, *more)


def wrapped(loss: nn.Module) -> nn.Module:
    """A loss of PyTorch as their experiments use it: student against teacher."""
    sides = {"input": OUTPUT | {"is_from_teacher": False}, "target": OUTPUT | {"is_from_teacher": True}}
    return mid_level.SimpleLossWrapper(loss, **sides)


def labels_of(student: Tensor) -> Tensor:
    return torch.arange(len(student)) % student.shape[1]


def our_kd(student: Tensor, source: Tensor, *, weight: float) -> Tensor:
    """The parts of the method's loss, added up as it adds them."""
    task = SimpleNamespace(primary_loss=PRIMARY_LOSSES["ce"])
    itself = SimpleNamespace(options=KDOptions(weight=weight, temperature=T), task=task)
    batch = SimpleNamespace(labels=labels_of(student), outputs={"wise": {"logits": source}})
    return torch.stack(list(KD.losses(itself, batch, student, {}).values())).sum()


def their_kd(student: Tensor, source: Tensor, *, weight: float) -> Tensor:
    loss = mid_level.KDLoss(**MODULES, temperature=T, alpha=1 - weight, beta=weight)
    return told(loss, student, source, labels_of(student))


def source_entropy(source: Tensor) -> Tensor:
    softened = F.softmax(source / T, dim=1)
    return -(softened * softened.log()).sum(dim=1).mean()


def sp_by_l1(student: Tensor, source: Tensor) -> Tensor:
    with patch.dict(NORMALISATIONS, row_l2=lambda matrix: F.normalize(matrix, p=1)):
        return PRESETS["sp"](student, source)


def pkt_with_the_diagonal(student: Tensor, source: Tensor) -> Tensor:
    ((weight, relation),) = PRESETS["pkt"].relations
    return replace(PRESETS["pkt"], relations=((weight, replace(relation, pairs="all")),))(student, source)


def pearson(student: Tensor, source: Tensor) -> Tensor:
    """1 - r of each row with its own, from the correlations of all rows that `ega` takes."""
    return 1 - correlations(student, source).diagonal().mean()


LOSSES = {
    "kd": Row(ours=partial(our_kd, weight=0.9), theirs=partial(their_kd, weight=0.9)),
    # Without labels theirs also leaves out its weight and T^2.
    "kd, soft labels alone": Row(
        ours=partial(our_kd, weight=1.0),
        theirs=partial(their_kd, weight=1.0),
        undone=lambda student, source: our_kd(student, source, weight=1.0) / T**2,
    ),
    "sskt, kl": Row(
        ours=partial(soft_kl, temperature=T),
        theirs=partial(told, mid_level.KDLoss(**MODULES, temperature=T, alpha=0.0)),
        undone=lambda student, source: soft_kl(student, source, temperature=T) / T**2,
    ),
    # Cross-entropy is KL and the entropy of the source, which no gradient sees.
    "sskt, ce": Row(
        ours=partial(soft_cross_entropy, temperature=T),
        theirs=partial(told, mid_level.KDLoss(**MODULES, temperature=T, alpha=0.0)),
        undone=lambda student, source: (
            soft_cross_entropy(student, source, temperature=T) / T**2 - source_entropy(source)
        ),
    ),
    "rkd": Row(
        ours=PRESETS["rkd"],
        theirs=partial(told, mid_level.RKDLoss(**OUTPUTS, dist_factor=25.0, angle_factor=50.0, reduction="mean")),
        shapes=ANY_WIDTH,
    ),
    # They divide the rows of the Gram matrix by their L1 norm, the paper by L2.
    "sp": Row(
        ours=PRESETS["sp"],
        theirs=partial(told, mid_level.SPKDLoss(**OUTPUTS, reduction="batchmean")),
        undone=sp_by_l1,
        shapes=ANY_WIDTH,
    ),
    # They keep a row's similarity with itself, the paper leaves it out.
    "pkt": Row(
        ours=PRESETS["pkt"],
        theirs=partial(told, mid_level.PKTLoss(**MODULES, eps=0.0)),
        undone=pkt_with_the_diagonal,
        shapes=ANY_WIDTH,
    ),
    # They take the norm, not its square, and divide that by B^2; rows reach the kernel as they are.
    "cc": Row(
        ours=PRESETS["cc"],
        theirs=lambda student, source: told(
            mid_level.CCKDLoss(
                **LINEAR, kernel_config={"type": "gaussian", "gamma": 0.4, "max_p": 2}, reduction="batchmean"
            ),
            unit_rows(student),
            unit_rows(source),
        ),
        undone=lambda student, source: PRESETS["cc"](student, source).sqrt() / len(student),
        shapes=ANY_WIDTH,
    ),
    "embed, mse": Row(ours=DISTANCES["mse"], theirs=partial(told, wrapped(nn.MSELoss()))),
    # Their distance with a variance per dimension, all of them 1.
    "embed, mse, PAD": Row(
        ours=DISTANCES["mse"],
        theirs=lambda student, source: told(
            mid_level.PADL2Loss(**EMBED, eps=0.0), student, source, var_estimator=torch.zeros_like(student)
        ),
    ),
    "embed, cosine": Row(
        ours=DISTANCES["cosine"],
        theirs=lambda student, source: told(
            wrapped(nn.CosineEmbeddingLoss()), student, source, None, torch.ones(len(student))
        ),
    ),
    # Theirs takes the distance between unit rows.
    "embed, l2": Row(
        ours=DISTANCES["l2"],
        theirs=partial(told, mid_level.KTALoss(**ADAPTED, p=2, q=2)),
        undone=lambda student, source: DISTANCES["l2"](directions(student), directions(source)),
    ),
    "ega, Pearson's r": Row(
        ours=pearson,
        theirs=lambda student, source: mid_level.DISTLoss(**MODULES).inter_class_relation(student, source),
    ),
    "attention maps": Row(
        ours=lambda student, source: F.mse_loss(attention_map(student), attention_map(source)),
        theirs=partial(told, mid_level.ATLoss({"tap": TAP}, mode="code")),
        shapes=TAPS,
    ),
}
CASES = [(name, shape, seed) for name, row in LOSSES.items() for shape in row.shapes for seed in SEEDS]


def spaces(shape: tuple[tuple[int, ...], tuple[int, ...]], seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, source = (torch.randn(size, generator=generator, dtype=torch.float64) for size in shape)
    return student + 0.3, source * 4


def value_and_gradient(loss: Loss, student: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student, source)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def distance(left: Tensor, right: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return ((left - right).abs().max() / right.abs().max()).item()


@pytest.mark.parametrize(("name", "shape", "seed"), CASES)
def test_ours_is_theirs_in_value_and_gradient(name, shape, seed):
    row, (student, source) = LOSSES[name], spaces(shape, seed)
    ours = value_and_gradient(row.undone or row.ours, student, source)
    theirs = value_and_gradient(row.theirs, student, source)
    assert theirs[0] > 0
    assert theirs[1].abs().max() > 0
    for mine, its in zip(ours, theirs, strict=True):
        assert distance(mine, its) < TOLERANCE


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if row.undone])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_undone_did_differ(name, seed):
    row = LOSSES[name]
    student, source = spaces(row.shapes[-1], seed)
    ours, theirs = row.ours(student, source), row.theirs(student, source)
    assert distance(ours, theirs) > 0.01


@pytest.mark.parametrize(
    ("name", "kind"),
    [("rkd", "twin"), ("sp", "zero"), ("pkt", "zero"), ("embed, cosine", "zero"), ("embed, l2", "zero")],
)
def test_a_twin_or_zero_row_upsets_only_theirs(name, kind):
    """They divide by a length, or by what they put in place of 0: a gradient of 1e4 and more, or none at all (nan)."""
    student, source = spaces(((6, 4), (6, 4)), 0)
    student[1] = student[0] if kind == "twin" else 0.0
    _, ours = value_and_gradient(LOSSES[name].ours, student, source)
    _, theirs = value_and_gradient(LOSSES[name].theirs, student, source)
    assert ours.abs().max() < 10
    assert not theirs.abs().max() < 1e4
