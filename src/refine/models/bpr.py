"""Bayesian Personalised Ranking (Rendle et al., UAI 2009) on smoothed embeddings, in one node.

A training step is small: what surrounds its sparse products costs as much as they do if every
operation keeps a record for automatic differentiation and its result in a tensor of its own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from refine import shards

Smoothing = Callable[[Tensor], Tensor]
"""A symmetric linear map of embeddings [nodes, d] that acts on each dimension alone."""


def bpr_loss(
    embedding: Tensor, smooth: Smoothing, triples: Tensor, regularisation: float, scale: float = 1.0
) -> Tensor:
    """Mean of -ln sigmoid(y_ui - y_uj), plus lambda / b times ||E0||^2 of the batch's nodes.

    Scores are inner products of the smoothed embeddings. In the norm each node counts once,
    however often it occurs.

    Args:
        embedding: E0, which the loss is differentiable in; floating point [nodes, d], or this
            process's columns of it.
        smooth: E0 -> E / ``scale``; not differentiable itself.
        triples: the nodes of user, positive and negative; int64 [3, b].
        regularisation: lambda.
        scale: a factor of all smoothed embeddings, which is cheaper to apply here.
    """
    loss: Tensor = _BPRLoss.apply(  # type: ignore[no-untyped-call]
        embedding, smooth, triples, regularisation, scale
    )
    return loss


class _BPRLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        embedding: Tensor,
        smooth: Smoothing,
        triples: Tensor,
        regularisation: float,
        scale: float,
    ) -> Tensor:
        b, nodes = triples.shape[1], triples.flatten()
        rows = smooth(embedding).index_select(0, nodes)
        users, positives, negatives = rows.view(3, b, -1).unbind()
        differences = positives.sub_(negatives)
        margins = torch.linalg.vecdot(users, differences)
        occurs = embedding.new_zeros(len(embedding)).index_fill_(0, nodes, 1.0)
        squared_norm = occurs @ torch.linalg.vecdot(embedding, embedding)
        margins, squared_norm = shards.add_up(margins, squared_norm)
        margins.mul_(scale**2)
        ctx.smooth, ctx.nodes, ctx.rows = smooth, nodes, rows
        ctx.margins, ctx.embedding, ctx.occurs = margins, embedding, occurs
        ctx.scale, ctx.weight = scale, regularisation / b
        return F.softplus(-margins).mean().add_(squared_norm, alpha=ctx.weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.rows is None:
            raise RuntimeError("the gradient is asked for a second time, but has been overwritten")
        rows, ctx.rows = ctx.rows, None
        users, differences, negatives = rows.view(3, len(ctx.margins), -1).unbind()
        slopes = torch.sigmoid(-ctx.margins).mul_(gradient * (ctx.scale**2 / len(ctx.margins)))
        slopes = slopes.unsqueeze(1)
        torch.mul(users, slopes, out=negatives)
        torch.mul(differences, -slopes, out=users)
        torch.neg(negatives, out=differences)
        total = torch.zeros_like(ctx.embedding).index_add_(0, ctx.nodes, rows)
        total = ctx.smooth(total)
        total.addcmul_(ctx.embedding, ctx.occurs.mul_(gradient * (2 * ctx.weight)).unsqueeze(1))
        return total, None, None, None, None
