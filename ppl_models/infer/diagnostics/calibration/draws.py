r"""Draws for data that a model drew, beside the latents that it drew them from.

Shapes: `S` simulations, `L` draws for each, `B` draws of some of them; of a run, `K` draws of `R`
rows, or of one data set.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppl_models.infer.compiled.side_by_side import Results
from ppl_models.infer.evidence.joint import Joint
from ppl_models.infer.evidence.weights import Draws, row_dim
from ppl_models.infer.programs import sites
from ppl_models.infer.trials.points import check_no_point


class Some(NamedTuple):
    """Some draws.

    Attributes:
        which: The simulations that they are for, `(B,)`.
        latents: Their values, each `(B, *)`.
        log_p: The joint log-density of the model there, `(B,)`.
        rounding: How far equal ones of these may be apart, by their last digits, `(B,)`.
    """

    which: Tensor
    latents: dict[str, Tensor]
    log_p: Tensor
    rounding: Tensor


@dataclass(frozen=True, eq=False)
class Simulations:
    """What a model drew, and draws for it.

    Attributes:
        truth: The latents of each simulation.
        draws: Gives the draws, some at a time.
        number: How many there are for each, `(S,)`.
        data: The data of each as numbers, `(S, F)`.
        others: Gives the latents and the data of other simulations, as many.
    """

    truth: Some
    draws: Callable[[], Iterator[Some]]
    number: Tensor
    data: Tensor
    others: Callable[[], tuple[dict[str, Tensor], Tensor]]


def ranked(joint: Joint) -> list[str]:
    """The latents that the guide draws, or an error where there is nothing to rank."""
    summed = joint.enumeration.names
    names = sorted(joint.latent.keys() - summed)
    if not names:
        raise ValueError(nothing_to_rank(summed))
    joint.check_points(check_no_point)
    return names


def nothing_to_rank(summed: Iterable[str]) -> str:
    names = ", ".join(map(repr, sorted(summed)))
    beside = f" but {names}, which are summed out" if names else ""
    return (
        f"model: expected latents that a guide draws, got none{beside}: there is no posterior "
        f"whose draws could be ranked."
    )


def gathering(joint: Joint, names: Iterable[str]) -> Callable[[Draws], Results]:
    """Gives what is ranked of some draws, each `(K, R, *)`, of whole data sets `(K, 1, *)`."""

    def gathered(draws: Draws) -> Results:
        drawn = sites.latent_sites(draws.guide)
        found: Results = {"log_p": draws.log_p, "rounding": draws.rounding}
        return found | {(name,): _by_rows(joint, draws, drawn[name]) for name in names}

    return gathered


def _by_rows(joint: Joint, draws: Draws, site: dict) -> Tensor:
    """The values of a site, draws in front, and then rows."""
    event_dim, dim = site["fn"].event_dim, row_dim(site)
    value = joint.unstack(draws, site, site["value"], event_dim)
    if not joint.by_row or dim is None:
        return value.unsqueeze(1)
    return value.movedim(value.dim() - event_dim + dim, 1)


def rows_first(site: dict) -> Tensor:
    """The value of a site of rows, `(R, *)`."""
    value, dim = site["value"], row_dim(site)
    assert dim is not None
    return value.movedim(value.dim() - site["fn"].event_dim + dim, 0).cpu()


def some(which: Tensor, found: Results) -> Some:
    """Draws that were gathered, one after the other.

    Arguments:
        which: The simulations that they are for, of the rows, or of each draw of a data set.
        found: What was gathered.
    """
    flat = {key: value.flatten(0, 1).cpu() for key, value in found.items()}
    latents = {key[0]: value for key, value in flat.items() if isinstance(key, tuple)}
    each = which.repeat(len(flat["log_p"]) // len(which))
    return Some(each, latents, flat["log_p"], flat["rounding"])


def together(parts: Iterable[Some]) -> Some:
    """All draws at once."""
    found = list(parts)
    return Some(
        torch.cat([part.which for part in found]),
        {n: torch.cat([part.latents[n] for part in found]) for n in found[0].latents},
        torch.cat([part.log_p for part in found]),
        torch.cat([part.rounding for part in found]),
    )


def numbers(data: Iterable[Tensor], count: int) -> Tensor:
    """The data of each simulation as one vector, `(S, F)`."""
    return torch.cat([x.detach().cpu().double().reshape(count, -1) for x in data], 1)
