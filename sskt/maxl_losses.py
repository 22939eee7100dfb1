"""What MAXL is made of: soft labels within a class, the focal loss, entropy, and the target one step ahead.

The lookahead is theta+ = theta - rate * grad(L_pri + L_aux), and what the label network learns from is the gradient of
L_pri(theta+) through it: exactly, or with the mixed second derivative as a difference of two gradients (DARTS, arXiv
1806.09055).
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Parameters = Mapping[str, Tensor]
LossesAt = Callable[[Parameters], Mapping[str, Tensor]]
"""The parts `primary` and `auxiliary` of the target's loss at these parameters."""


def masked_softmax(logits: Tensor, labels: Tensor, *, subclasses: int) -> Tensor:
    """Softmax over the subclasses of each row's own class, 0 elsewhere. logits: [B, C * subclasses]; labels: [B]."""
    owner = torch.arange(logits.shape[1], device=logits.device) // subclasses
    return logits.masked_fill(owner != labels.unsqueeze(1), -torch.inf).softmax(dim=1)


def focal_loss(logits: Tensor, targets: Tensor, *, gamma: float) -> Tensor:
    """Mean over the batch of -sum_k y_k (1 - p_k)^gamma log p_k. logits: [B, K]; targets: probabilities [B, K]."""
    log_p = F.log_softmax(logits, dim=1)
    # Kept off 0, where a power below 2 has no second derivative; the loss itself does not notice.
    missing = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)
    return -(targets * missing**gamma * log_p).sum(dim=1).mean()


def negative_entropy(targets: Tensor) -> Tensor:
    """sum_k m_k log m_k of the batch mean m, in nats; lowest where all subclasses are used alike. targets: [B, K]."""
    mean = targets.mean(dim=0)
    # A class that is not in the batch has m_k = 0, whose logarithm has to stay finite for the gradient.
    return (mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()


def exact_lookahead(losses_at: LossesAt, parameters: Parameters, *, rate: float) -> Tensor:
    """L_pri(theta+), with the graph through the step that led there."""
    # The fused kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        gradients = _gradients(_total(losses_at(parameters)), parameters, create_graph=True)
        return losses_at(_moved(parameters, gradients, by=-rate))["primary"]


def first_order_lookahead(
    losses_at: LossesAt, parameters: Parameters, *, rate: float, distance: float = 0.01
) -> Tensor:
    """L_pri(theta+), whose gradient is a central difference along v = grad L_pri(theta+), each side `distance` away.

    -rate * (grad L_aux(theta + eps v) - grad L_aux(theta - eps v)) / (2 eps), eps = distance / |v|. Both sides stay in
    the graph of the auxiliary labels, so one backward pass takes them and whatever else is added to the loss.
    """
    here = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    gradients = _gradients(_total(losses_at(here)), here)
    ahead = {name: value.detach().requires_grad_() for name, value in _moved(here, gradients, by=-rate).items()}
    primary = losses_at(ahead)["primary"]
    direction = _gradients(primary, ahead)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in direction]))
    eps = distance / norm.clamp(min=1e-12)
    with torch.no_grad():
        further, back = (_moved(here, direction, by=signed) for signed in (eps, -eps))
    # Both sides draw the same dropout; its noise divided by eps would drown the difference.
    with torch.random.fork_rng(devices=_cuda_devices(parameters.values())):
        one_side = losses_at(further)["auxiliary"]
    difference: Tensor = -rate * (one_side - losses_at(back)["auxiliary"]) / (2 * eps)
    return primary.detach() + (difference - difference.detach())


def _total(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum()


def _gradients(loss: Tensor, parameters: Parameters, *, create_graph: bool = False) -> tuple[Tensor, ...]:
    wanted = list(parameters.values())
    gradients: tuple[Tensor, ...] = torch.autograd.grad(loss, wanted, create_graph=create_graph, materialize_grads=True)
    return gradients


def _moved(parameters: Parameters, direction: Iterable[Tensor], *, by: float | Tensor) -> dict[str, Tensor]:
    return {name: value + by * one for (name, value), one in zip(parameters.items(), direction, strict=True)}


def _cuda_devices(tensors: Iterable[Tensor]) -> list[torch.device]:
    return list({tensor.device for tensor in tensors if tensor.is_cuda})
