r"""A part of a draw: one step, taken many times on the same tensors.

A `walk` of a network computes with slices that move and grow; a step looks up what it reads at its
place, a tensor, so that all steps of a stage are the same operations on tensors of the same shapes.

Shapes: `B` rows, `P` outputs for each feature.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Kept = dict[str, Any]  # trees of tensors, some of which a step writes into
Draw = Callable[[Tensor], Tensor]  # draws the values of a feature, `(B,)`, from outputs `(B, P)`
Linear = tuple[Tensor, Tensor]  # a matrix, `(I, O)`, and what is added, `(O,)`


class Stage(NamedTuple):
    """Steps that are the same but for their place.

    Attributes:
        step: Takes one: `step(network, place, kept, draw)`. Its places go on from stage to stage.
        times: How many there are.
        kept: What they read and write.
    """

    step: Callable[[Any, Tensor, Kept, Draw], None]
    times: int
    kept: Kept


def at(table: Tensor, place: Tensor) -> Tensor:
    """Returns the entry of a table at a place."""
    return table.index_select(0, place.view(1)).squeeze(0)


def put(table: Tensor, place: Tensor, value: Tensor) -> None:
    """Writes an entry of a table at a place."""
    table.index_copy_(0, place.view(1), value.unsqueeze(0))


def linear(x: Tensor, layer: Linear) -> Tensor:
    """Returns a linear map of rows, `(B, O)`."""
    return torch.addmm(layer[1], x, layer[0])


def of_conv(conv: Any) -> Linear:
    """A convolution along a row as a linear map of its window, pixel after pixel."""
    weight = conv.weight.detach()
    weight = weight if weight.ndim == 3 else weight[:, :, 0]  # (O, I, n)
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().clone()
    return weight.permute(2, 1, 0).flatten(0, 1).clone(), bias


def of_head(head: Any) -> list[Linear]:
    """The head of a network over images, two convolutions of one pixel each."""
    return [of_conv(layer) for layer in head if isinstance(layer, nn.Conv2d)]


def outputs(h: Tensor, head: list[Linear]) -> Tensor:
    """Returns what a head makes of pixels `(B, C)`, `(B, P)`."""
    return linear(F.relu(linear(F.relu(h), head[0])), head[1])


def by_place(table: Tensor) -> Tensor:
    """What differs from pixel to pixel, `(C, H, W)`, in their order, `(H W, C)`."""
    return table.detach().flatten(1).t().contiguous()
