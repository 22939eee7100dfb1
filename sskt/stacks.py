"""The targets of several methods stacked into one network, [K, ...] each of its weights, that steps for all of them.

What the methods hold are parts of the stack, so that each can predict, be saved and go on alone at any time. Along the
first dimension nothing is summed: what is no longer a number in one of them stays there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sskt.feeds import Batch
from sskt.loop import Parts
from sskt.losses import objective
from sskt.methods.base import SingleTarget
from sskt.networks import Features, TappedNetwork


class Stack:
    """Methods whose targets are built alike, each with the hyperparameters, heads and schedule that it has alone."""

    def __init__(self, methods: Sequence[SingleTarget]) -> None:
        self.methods = list(methods)
        self._weights = _Weights(self.methods)
        targets = [method.target for method in methods]
        self._fixed = _joined([{n: p for n, p in one.named_parameters() if not p.requires_grad} for one in targets])
        self._buffers = _joined([dict(one.named_buffers()) for one in targets])
        heads = [head for method in methods for head in method.heads.values()]
        self._with_taps = any(getattr(head, "reads_taps", True) for head in heads)

    def step(self, batches: Sequence[Batch]) -> list[Parts]:
        """What `step` of each method does with its batch; all of them are of one size."""
        images, base = torch.stack([batch.images for batch in batches]), self.methods[0].target
        weights = self._weights.leaves | self._fixed
        features = forward(base, weights, self._buffers, images, with_taps=self._with_taps)
        losses, told = [], []
        for method, batch, own in zip(self.methods, batches, apart(features), strict=True):
            heads = {name: head(own) for name, head in method.heads.items()}
            loss, parts = objective(method.losses(batch, own.logits, heads))
            losses.append(loss)
            told.append(parts)
            method.optimizer.zero_grad()
        # Not of their sum, which one that is no number would make one of all.
        torch.autograd.backward(losses)
        self._weights.descend()
        for method in self.methods:
            method.optimizer.step()  # of what else it trains: it holds no gradients of its target
            method.schedule.step()
        return told


def forward(
    like: TappedNetwork,
    weights: dict[str, Tensor],
    buffers: dict[str, Tensor],
    images: Tensor,
    *,
    with_taps: bool = True,
) -> Features:
    """Run networks that are built alike on a batch each, uint8 [K, B, c, S, S]; everything they give is [K, ...]."""

    def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Features:
        features: Features = functional_call(like, (weights, buffers), (images,), {"with_taps": with_taps})
        return features

    stacked: Features = vmap(one, randomness="error")(weights, buffers, images)
    return stacked


def apart(features: Features) -> list[Features]:
    """What each of stacked networks gave."""
    taps = [tap.unbind() for tap in features.taps]
    of_all = zip(features.embedding.unbind(), features.logits.unbind(), strict=True)
    return [Features(tuple(tap[k] for tap in taps), *rest) for k, rest in enumerate(of_all)]


def _joined(lanes: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack tensors by name; those that were there become parts of what is returned."""
    stacked = {name: torch.stack([lane[name].detach() for lane in lanes]) for name in lanes[0]}
    for number, lane in enumerate(lanes):
        for name, tensor in lane.items():
            tensor.data = stacked[name][number]
    return stacked


class _Weights:
    """What of the targets learns, and its momenta, each end to end in one vector [N]: one descent serves all of it.

    It is SGD as `make_optimizer` makes it, by the learning rate and the other values that each method has then.
    """

    def __init__(self, methods: Sequence[SingleTarget]) -> None:
        self._methods = methods
        lanes = [{n: p for n, p in method.target.named_parameters() if p.requires_grad} for method in methods]
        self._values = _end_to_end(lanes)
        self._momenta = _end_to_end([_momenta(method, lane) for method, lane in zip(methods, lanes, strict=True)])
        shapes = {name: parameter.shape for name, parameter in lanes[0].items()}
        self.leaves = {}
        """The weights by name, [K, ...] each, of which gradients are taken."""
        start = 0
        for name, shape in shapes.items():
            stop = start + len(lanes) * shape.numel()
            values, momenta = (whole[start:stop].view(-1, *shape) for whole in (self._values, self._momenta))
            self.leaves[name] = values.detach().requires_grad_()
            for method, lane, value, momentum in zip(methods, lanes, values, momenta, strict=True):
                lane[name].data = value
                if _group(method)["momentum"]:
                    method.optimizer.state[lane[name]]["momentum_buffer"] = momentum
            start = stop
        numbers = torch.arange(len(lanes), device=self._values.device)
        self._lane = torch.cat([numbers.repeat_interleave(shape.numel()) for shape in shapes.values()])
        self._decay, self._keep = self._by_lane("weight_decay"), self._by_lane("momentum")
        self._nesterov = self._by_lane("nesterov") > 0 if any(_group(one)["nesterov"] for one in methods) else None

    @torch.no_grad()
    def descend(self) -> None:
        """Take a step down the gradients of the leaves, and forget them."""
        gradients = torch.cat([leaf.grad.flatten() for leaf in self.leaves.values() if leaf.grad is not None])
        gradients.addcmul_(self._decay, self._values)
        self._momenta.mul_(self._keep).add_(gradients)
        down = self._momenta
        if self._nesterov is not None:
            down = torch.where(self._nesterov, gradients.addcmul(self._keep, self._momenta), self._momenta)
        self._values.addcmul_(down, self._by_lane("lr"), value=-1)
        for leaf in self.leaves.values():
            leaf.grad = None

    def _by_lane(self, name: str) -> Tensor:
        """A hyperparameter of each method, for each of its weights: [N]."""
        values = torch.tensor([float(_group(method)[name]) for method in self._methods])
        return values.to(self._values.device)[self._lane]


def _end_to_end(lanes: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """All numbers of some tensors, by name, then by lane."""
    return torch.cat([torch.stack([lane[name].detach() for lane in lanes]).flatten() for name in lanes[0]])


def _momenta(method: SingleTarget, weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The momentum of each weight; what has none yet is at rest."""
    states = {name: method.optimizer.state.get(weight, {}) for name, weight in weights.items()}
    return {name: states[name].get("momentum_buffer", torch.zeros_like(weights[name])) for name in weights}


def _group(method: SingleTarget) -> dict[str, Any]:
    (group,) = method.optimizer.param_groups
    return group
