"""The steps of a masked perceptron, and of any causal network by passes.

Shapes: `B` rows, `D` features, `P` outputs for each feature, `M` units of a degree at most.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ppl_models.autoregressive.stage import Draw, Kept, Stage, at, put
from ppl_models.nn import MaskedMLP


def of_masked(network: MaskedMLP, num_rows: int, num_features: int) -> Iterator[Stage]:
    """The stage of a masked perceptron: the units of one degree after the other.

    A layer has one unit more, which is no one's: it stands where a degree has fewer than `M`.
    """
    layers: list[Any] = list(network.layers)
    weights = [(layer.weight * layer.mask).detach() for layer in layers]
    wide = [weights[0], *(F.pad(weight, (0, 1)) for weight in weights[1:])]
    hidden = [
        {"weight": F.pad(weight, (0, 0, 0, 1)), "bias": F.pad(layer.bias.detach(), (0, 1))}
        | {"units": _of_degree(degrees, num_features)}
        for weight, layer, degrees in zip(wide, layers, network.degrees, strict=False)
    ]
    last = {"weight": wide[-1], "bias": layers[-1].bias.detach()}
    values = [weights[0].new_zeros(weight.shape[1], num_rows) for weight in wide]
    shape = (num_features, network.num_outputs)
    kept = {
        "hidden": hidden,
        "weight": last["weight"].unflatten(0, shape).clone(),  # (D, P, H)
        "bias": last["bias"].view(shape).clone(),
        "values": values,  # of features, and of the units of each layer, with rows side by side
    }
    yield Stage(_masked, num_features, kept)


def _of_degree(degrees: list[int], num_features: int) -> Tensor:
    """The units of each degree from 0 to D - 1, (D, M), of none the last of all."""
    units: list[list[int]] = [[] for _ in range(num_features + 1)]
    for unit, degree in enumerate(degrees):
        units[degree].append(unit)
    most = max(1, *map(len, units))
    return torch.tensor([own + [len(degrees)] * (most - len(own)) for own in units[:num_features]])


def _masked(network: MaskedMLP, place: Tensor, kept: Kept, draw: Draw) -> None:
    values = kept["values"]
    for n, layer in enumerate(kept["hidden"]):
        units = at(layer["units"], place)  # of degree d, which see the features before d
        weight, bias = (layer[name].index_select(0, units) for name in ("weight", "bias"))
        new = torch.addmm(bias.unsqueeze(1), weight, values[n]).relu()  # (M, B)
        values[n + 1].index_copy_(0, units, new)
    bias, weight = at(kept["bias"], place), at(kept["weight"], place)
    put(values[0], place, draw(torch.addmm(bias.unsqueeze(1), weight, values[-1]).t()))


def of_passes(network: Any, num_rows: int, num_features: int) -> Iterator[Stage]:
    """The stage of any causal network: a pass over the whole row for each feature."""
    like = next(network.parameters()).detach()
    yield Stage(_pass, num_features, {"x": like.new_zeros(num_rows, num_features)})


def _pass(network: Any, place: Tensor, kept: Kept, draw: Draw) -> None:
    own = network(kept["x"]).index_select(1, place.view(1)).squeeze(1)
    kept["x"].index_copy_(1, place.view(1), draw(own).unsqueeze(1))
