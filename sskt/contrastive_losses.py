"""Losses between two views of the same images: which row of one view belongs to which of the other.

Rows are float [B, D], image by image in both views. All look at directions only, so no change of scale alters them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.embedding_losses import directions
from sskt.relations import dot, kl, row_softmax


def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Mean over all 2B rows i of -log softmax, over the rows j != i, of cos(z_i, z_j) / T, at i's other view.

    first, second: [B, D]. With one image there is nothing to mistake it for, and the loss is 0.
    """
    similarity = dot(directions(torch.cat([first, second]))) / temperature
    itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    partners = torch.arange(len(similarity), device=similarity.device).roll(len(first))
    return F.cross_entropy(similarity.masked_fill(itself, -torch.inf), partners)


def cross_view_kl(own: Tensor, other: Tensor, *, temperature: float) -> Tensor:
    """KL(P_other || P_own), the mean over rows i of softmaxes P over j of cos(z_x,i, z_y,j) / T.

    own, other: [2B, D] each of its own width, the rows of view x, then those of view y. One direction, x to y.
    """
    return kl(_cross_view(own, temperature=temperature), _cross_view(other, temperature=temperature))


def _cross_view(rows: Tensor, *, temperature: float) -> Tensor:
    """Log probabilities [B, B] that an image of the first view is each of the second."""
    first, second = directions(rows).chunk(2)
    return row_softmax(first @ second.T / temperature)
