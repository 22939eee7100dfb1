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

from sskt.bank_losses import contrast_scores, nce
from sskt.embedding_losses import DISTANCES, correlations, directions
from sskt.losses import PRIMARY_LOSSES, soft_cross_entropy, soft_kl
from sskt.map_losses import attention_distance
from sskt.maps import MapShape, attention_map
from sskt.methods.at import AT, ATOptions
from sskt.methods.kd import KD, KDOptions
from sskt.methods.sskd import SSKD, SSKDOptions
from sskt.relations import NORMALISATIONS, PRESETS, unit_rows
from sskt.sskd_losses import error_levels, parent_cross_entropy, parents, similarities

Loss = Callable[[Tensor, Tensor], Tensor]
Fraction = Callable[[Tensor], float]
Shapes = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

TOLERANCE = 1e-9
SEEDS = (0, 1, 2)
T, SIMILARITY_T = 3.0, 0.5
# Theirs rounds this one to float32, which 1 / 16 survives.
CONTRAST_T, NEGATIVES = 0.0625, 12

SAME_WIDTH: Shapes = (((1, 4), (1, 4)), ((6, 10), (6, 10)), ((64, 5), (64, 5)))
TAPS: Shapes = (((2, 3, 4, 4), (2, 7, 4, 4)), ((8, 6, 5, 3), (8, 2, 5, 3)))
UPRIGHT_AND_TURNED: Shapes = (((12, 5), (12, 5)), ((24, 10), (24, 10)), ((64, 5), (64, 5)))
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


def our_at(student: Tensor, source: Tensor) -> Tensor:
    """The part of the method's loss, of networks with one tap that counts as two."""
    shape, facts = MapShape(*source.shape[1:]), SimpleNamespace(classes=1)
    facts.sources = {"wise": SimpleNamespace(maps=[shape, shape])}
    task = SimpleNamespace(primary_loss=lambda logits, labels: None, facts=facts)
    itself = SimpleNamespace(options=ATOptions(weight=1.0), task=task)
    batch = SimpleNamespace(labels=None, outputs={"wise": {"attention": attention_map(source).repeat(1, 2)}})
    return AT.losses(itself, batch, student, {"taps": (student, student)})["attention/wise"]


def attention(student: Tensor, source: Tensor) -> Tensor:
    return attention_distance(student, attention_map(source).view(len(source), *source.shape[2:]))


def memories(source: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows [B + NEGATIVES, D] of a student and of the source: the images of the batch, then others."""
    generator = torch.Generator().manual_seed(1)
    size = len(source) + NEGATIVES, source.shape[1]
    student, others = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    return directions(student), directions(torch.cat([source, others[len(source) :]]))


def contrast(rows: Tensor, memory: Tensor) -> Tensor:
    """Scores of rows [B, D] with a memory of their images, then others."""
    own, negatives = memory.split([len(rows), NEGATIVES])
    usable = torch.ones(len(rows), NEGATIVES, dtype=torch.bool)
    return contrast_scores(rows, own, negatives, usable=usable) / CONTRAST_T


def our_crd(student: Tensor, source: Tensor) -> Tensor:
    return nce(contrast(student, memories(source)[1]))


def crd_both_ways(student: Tensor, source: Tensor) -> Tensor:
    """Student against source and source against student, with the Z of their first batch."""
    of_student, of_source = memories(source)
    ways = [contrast(student, of_source), contrast(source, of_student)]
    return torch.stack([nce(scores - scores.detach().exp().mean().log()) for scores in ways]).sum()


def their_crd(student: Tensor, source: Tensor) -> Tensor:
    images, total = len(source), len(source) + NEGATIVES
    sizes = {"input_size": source.shape[1], "output_size": total, "num_samples": total}
    loss = mid_level.CRDLoss(
        "here", "empty", "here", **sizes, num_negative_samples=NEGATIVES, temperature=CONTRAST_T, eps=0.0
    ).double()
    loss.memory_v1, loss.memory_v2 = memories(source)
    own, others = torch.arange(total).split([images, NEGATIVES])
    asked = {"pos_idx": own, "contrast_idx": torch.cat([own.unsqueeze(1), others.expand(images, -1)], dim=1)}
    outputs = {"here": {"output": directions(student)}, "empty": {"input": asked}}
    return loss(outputs, {"here": {"output": directions(source)}}).squeeze()


def interleaved(rows: Tensor) -> Tensor:
    """Each upright image followed by its turns, as theirs takes them: [4B, D] -> [4B, D]."""
    return rows.view(4, len(rows) // 4, -1).transpose(0, 1).flatten(0, 1)


def everything(_: Tensor) -> float:
    return 1.0


def lesser_half(levels: Tensor) -> float:
    """A fraction of the wrong ones that parts two levels: which of equally wrong ones they keep is left to chance."""
    wrong = levels[levels > 0]
    return min(1.0, ((wrong <= wrong.median()).sum().item() + 0.5) / len(wrong))


def fractions(source: Tensor, fraction: Fraction) -> dict[str, float]:
    upright, turned = source.tensor_split([len(source) // 4])
    similarity = similarities(turned, upright)
    levels = {"turned": (turned, labels_of(upright).repeat(3)), "similarity": (similarity, parents(similarity))}
    return {f"keep_{part}": fraction(error_levels(*each)) for part, each in levels.items()}


def our_sskd(student: Tensor, source: Tensor, *, weights: list[float], fraction: Fraction) -> Tensor:
    """The method's loss, of networks whose embeddings are their logits."""
    itself, (upright, turned) = object.__new__(SSKD), source.tensor_split([len(source) // 4])
    itself.options = SSKDOptions(
        **dict(zip(("primary", "soft", "similarity", "turned"), weights, strict=True)),
        **fractions(source, fraction),
        temperature=T,
        similarity_temperature=SIMILARITY_T,
    )
    itself.task, itself.source_head = SimpleNamespace(primary_loss=PRIMARY_LOSSES["ce"]), nn.Identity()
    said, of_turned = ({"wise": {"logits": rows, "embedding": rows}} for rows in (upright, turned))
    batch = SimpleNamespace(labels=labels_of(upright), outputs=said, turned=SimpleNamespace(outputs=of_turned))
    return torch.stack(list(itself.losses(batch, student, {"similarity": student}).values())).sum()


def their_sskd(student: Tensor, source: Tensor, *, weights: list[float], fraction: Fraction) -> Tensor:
    keep, images = fractions(source, fraction), len(source) // 4
    temperatures = {"kl_temp": T, "tf_temp": T, "ss_temp": SIMILARITY_T}
    ratios = {"ss_ratio": keep["keep_similarity"], "tf_ratio": keep["keep_turned"]}
    loss = mid_level.SSKDLoss(*["here"] * 4, **temperatures, **ratios, loss_weights=weights)
    return told(loss, interleaved(student), interleaved(source), labels_of(student)[:images])


def source_head(projected: Tensor, _: Tensor) -> Tensor:
    upright, turned = projected.tensor_split([len(projected) // 4])
    return parent_cross_entropy(similarities(turned, upright))


def sskd(*weights: float, fraction: Fraction = everything) -> Row:
    """Of the labels, the soft labels of upright images, the similarities and the soft labels of turned ones."""
    ours, theirs = (partial(loss, weights=[*weights], fraction=fraction) for loss in (our_sskd, their_sskd))
    return Row(ours=ours, theirs=theirs, shapes=UPRIGHT_AND_TURNED)


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
    "at": Row(ours=our_at, theirs=partial(told, mid_level.ATLoss({"tap": TAP, "twin": TAP}, mode="code")), shapes=TAPS),
    "dreamteacher, attention": Row(
        ours=attention, theirs=partial(told, mid_level.ATLoss({"tap": TAP}, mode="paper")), shapes=TAPS
    ),
    # They add the source against a memory of the student, and put the Z of the first batch where we put M.
    "crd, nce": Row(ours=our_crd, theirs=their_crd, undone=crd_both_ways),
    "sskd": sskd(0.1, 0.9, 10.0, 2.7),
    "sskd, primary": sskd(1.0, 0.0, 0.0, 0.0),
    "sskd, soft": sskd(0.0, 1.0, 0.0, 0.0),
    "sskd, similarity": sskd(0.0, 0.0, 1.0, 0.0),
    "sskd, similarity, least wrong": sskd(0.0, 0.0, 1.0, 0.0, fraction=lesser_half),
    "sskd, turned": sskd(0.0, 0.0, 0.0, 1.0),
    "sskd, turned, least wrong": sskd(0.0, 0.0, 0.0, 1.0, fraction=lesser_half),
    # Here the source's head learns, and nobody else.
    "sskd, source head": Row(
        ours=source_head,
        theirs=lambda projected, _: told(mid_level.AuxSSKDLoss("here"), projected, interleaved(projected)),
        shapes=UPRIGHT_AND_TURNED,
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
