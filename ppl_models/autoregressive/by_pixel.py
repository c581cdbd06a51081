"""The steps of a gated PixelCNN: the horizontal stack pixel by pixel, the vertical one by rows.

Shapes: `B` rows, images of `H` by `W` pixels, `C` channels, `P` outputs for each pixel, `R` the
reach of a convolution.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ppl_models.autoregressive.stage import (
    Draw,
    Kept,
    Stage,
    at,
    by_place,
    linear,
    of_conv,
    of_head,
    outputs,
    put,
)
from ppl_models.nn import GatedPixelCNN
from ppl_models.nn.pixelcnn import gate


def of_gated(network: GatedPixelCNN, num_rows: int, num_features: int) -> Iterator[Stage]:
    """A stage for each row of the image, once the vertical stack is known there."""
    r, width, channels = network.reach, network.width, len(network.v_bias)
    layers: list[Any] = list(network.layers)
    zeros = network.v_bias.detach().new_zeros
    x = zeros(num_rows, 1, network.height + r, width + 2 * r)  # padded
    stacks = [zeros(num_rows, channels, r + 1, width + 2 * r) for _ in layers]
    kept: Kept = {
        "row": zeros(width, num_rows),  # of values
        "seen": zeros(r, num_rows),  # the values before the pixel, and each layer there
        "before": [zeros(r, num_rows, channels) for _ in layers],
        "links": [zeros(width, num_rows, 2 * channels) for _ in layers],
        "left": of_conv(network.left)[0],
        "across": [of_conv(layer.horizontal) for layer in layers],
        "output": [of_conv(layer.output) for layer in layers],
        "head": of_head(network.head),
        "h_bias": by_place(network.h_bias),
        "out_bias": by_place(network.out_bias),
    }
    for i in range(network.height):
        v = network.above(x[:, :, i : i + r]) + network.v_bias[:, i : i + 1]  # (B, C, 1, W)
        for k, layer in enumerate(layers):
            stacks[k] = torch.cat([stacks[k][:, :, 1:], F.pad(v, (r, r))], dim=2)
            more, link = layer.down(stacks[k])
            v = v + more
            kept["links"][k].copy_(link[:, :, 0].permute(2, 0, 1))
        for start in (kept["seen"], *kept["before"]):
            start.zero_()  # left of the image there is nothing
        yield Stage(_pixel, width, kept)
        x[:, 0, i + r, r : r + width] = kept["row"].t()


def _pixel(network: GatedPixelCNN, place: Tensor, kept: Kept, draw: Draw) -> None:
    j = place % network.width
    h = torch.addmm(at(kept["h_bias"], place), kept["seen"].t(), kept["left"])  # (B, C)
    for k, (weight, bias) in enumerate(kept["across"]):
        window = torch.cat([kept["before"][k], h.unsqueeze(0)])  # (R + 1, B, C)
        kept["before"][k].copy_(window[1:])
        link = at(kept["links"][k], j)
        gated = gate(torch.addmm(link, window.transpose(0, 1).flatten(1), weight) + bias)
        h = h + linear(gated, kept["output"][k])
    values = draw(outputs(h, kept["head"]) + at(kept["out_bias"], place))
    kept["seen"].copy_(torch.cat([kept["seen"][1:], values.unsqueeze(0)]))
    put(kept["row"], j, values)
