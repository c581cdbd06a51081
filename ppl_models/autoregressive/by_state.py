"""The steps of a PixelRNN: states of recurrent layers, pixel by pixel.

Shapes: `B` rows, images of `H` by `W` pixels, `C` channels, `P` outputs for each pixel.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

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
from ppl_models.nn import RecurrentPixels, RowLSTM


def of_recurrent(network: RecurrentPixels, num_rows: int, num_features: int) -> Iterator[Stage]:
    """A stage for each row of the image, and before it one for what comes from the right."""
    by_rows = isinstance(network.layers[0], RowLSTM)
    zeros, width = network.place.detach().new_zeros, network.width
    make = _row_layer if by_rows else _diagonal_layer
    layers = [make(layer, zeros, num_rows, width) for layer in network.layers]
    kept: Kept = {
        "pixels": zeros(width + 1, num_rows),  # the last ones drawn in each column, and none
        "beside": zeros(2, num_rows),  # the pixels above to the left, and to the left
        "first": torch.cat([of_conv(network.above)[0], of_conv(network.left)[0]]),
        "place": by_place(network.place),
        "out_place": by_place(network.out_place),
        "head": of_head(network.head),
        "layers": layers,
    }
    for i in range(network.height):
        if i > 0 and not by_rows:
            for layer in layers:
                _look_back(layer, kept["pixels"][:width])
            yield Stage(_from_right, width, {"layers": [layer["right"] for layer in layers]})
        for start in (kept["beside"], *(x for layer in layers for x in layer["carried"])):
            start.zero_()  # left of the image there is nothing
        yield Stage(_row_pixel if by_rows else _diagonal_pixel, width, kept)


def _lstm(given: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    o, f, i, g = given.chunk(4, dim=1)  # (B, C) each
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _first(place: Tensor, j: Tensor, kept: Kept) -> Tensor:
    """What is below the first layer, (B, C), from four pixels."""
    above = kept["pixels"].index_select(0, torch.stack([j, j + 1]))
    seen = torch.stack([kept["beside"][0], above[0], above[1], kept["beside"][1]], 1)
    return torch.addmm(at(kept["place"], place), seen, kept["first"])


def _last(place: Tensor, j: Tensor, kept: Kept, h: Tensor, draw: Draw) -> None:
    values = draw(outputs(h, kept["head"]) + at(kept["out_place"], place))
    kept["beside"].copy_(torch.stack([at(kept["pixels"], j), values]))
    put(kept["pixels"], j, values)


def _row_layer(layer: Any, zeros: Any, rows: int, width: int) -> Kept:
    channels = layer.output.in_channels
    return {
        "input": of_conv(layer.input),
        "cell": of_conv(layer.cell.state),
        "output": of_conv(layer.output),
        "h": zeros(width + 1, rows, channels),  # the last states in each column, and none
        "c": zeros(width, rows, channels),
        "carried": [zeros(rows, channels), zeros(rows, channels)],  # what is below; state above
    }


def _row_pixel(network: RecurrentPixels, place: Tensor, kept: Kept, draw: Draw) -> None:
    j = place % network.width
    below = _first(place, j, kept)
    for layer in kept["layers"]:
        before, corner = layer["carried"]
        above = layer["h"].index_select(0, torch.stack([j, j + 1]))  # (2, B, C)
        given = linear(torch.cat([before, below], 1), layer["input"])
        given = given + linear(torch.cat([corner, above[0], above[1]], 1), layer["cell"])
        state, cell = _lstm(given, at(layer["c"], j))
        before.copy_(below)
        corner.copy_(above[0])
        put(layer["h"], j, state)
        put(layer["c"], j, cell)
        below = below + linear(state, layer["output"])
    _last(place, j, kept, below, draw)


def _diagonal_layer(layer: Any, zeros: Any, rows: int, width: int) -> Kept:
    channels = layer.output.in_channels
    return {
        "from_left": of_conv(layer.from_left),
        "from_right": of_conv(layer.from_right),
        "cell": of_conv(layer.left.state),
        "output": of_conv(layer.output),
        "states": zeros(width, rows, channels),  # the last ones in each column
        "line": zeros(width, rows, channels),  # what was below there
        "carried": [zeros(rows, channels), zeros(rows, channels)],  # the state to the left; cell
        "right": {
            "cell": of_conv(layer.right.state),
            "given": zeros(width, rows, 4 * channels),
            "states": zeros(width, rows, channels),
            "carried": [zeros(rows, channels), zeros(rows, channels)],
        },
    }


def _diagonal_pixel(network: RecurrentPixels, place: Tensor, kept: Kept, draw: Draw) -> None:
    j = place % network.width
    below = _first(place, j, kept)
    for layer in kept["layers"]:
        beside, c = layer["carried"]
        window = torch.cat([at(layer["states"], j), beside], 1)
        given = linear(below, layer["from_left"]) + linear(window, layer["cell"])
        state, cell = _lstm(given, c)
        beside.copy_(state)
        c.copy_(cell)
        put(layer["states"], j, state)
        put(layer["line"], j, below)
        below = below + linear(state + at(layer["right"]["states"], j), layer["output"])
    _last(place, j, kept, below, draw)


def _look_back(layer: Kept, pixels: Tensor) -> None:
    """What the states from the right are to see of the row above, which is complete."""
    seen = torch.cat([layer["line"], pixels.unsqueeze(-1)], 2)  # (W, B, C + 1)
    weight, bias = layer["from_right"]
    layer["right"]["given"].copy_(seen @ weight + bias)
    for start in layer["right"]["carried"]:
        start.zero_()


def _from_right(network: RecurrentPixels, place: Tensor, kept: Kept, draw: Draw) -> None:
    j = network.width - 1 - place % network.width
    for layer in kept["layers"]:
        beside, c = layer["carried"]
        window = torch.cat([at(layer["states"], j), beside], 1)  # the state above, and beside it
        given = at(layer["given"], j) + linear(window, layer["cell"])
        state, cell = _lstm(given, c)
        beside.copy_(state)
        c.copy_(cell)
        put(layer["states"], j, state)
