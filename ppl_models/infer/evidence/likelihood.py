r"""The log-likelihood of each datum given the latents that a guide drew, all others summed over.

.. math::
    \log p(x_n \mid z) = \log \sum_k p(x_n, z, k) - \log \sum_k p(z, k)

where `z` are the latents drawn and `k` those that the model enumerates. Observed sites that share
some `k` are one datum of their plates: given the draws they do not know each other only with `k`.
What is left of a sum has the plates that all of its factors share. Where these are not those of
the rows, such as with one `k` for all of them, the likelihood of a single row is none of the terms.

Shapes: a value has the plates in `frames` as its dimensions.
"""

from typing import NamedTuple

from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from ppl_models.infer.evidence.weights import Draws, sum_out
from ppl_models.infer.programs import sites
from ppl_models.infer.programs.pyro_internals import packed_dims

Frames = tuple[CondIndepStackFrame, ...]


class Likelihood(NamedTuple):
    """The log-likelihood of some observed sites together.

    Attributes:
        names: The observed sites.
        value: Their joint log-likelihood, with the plates `frames`; None where what is enumerated
            leaves no number for each row.
        frames: The plates of the value.
        enumerated: The sites that were summed over.
        mask: Which numbers are of data, of the shape of the value; None where all are.
    """

    names: tuple[str, ...]
    value: Tensor | None
    frames: Frames
    enumerated: tuple[str, ...] = ()
    mask: Tensor | None = None


def likelihoods(draws: Draws) -> list[Likelihood]:
    """The log-likelihoods of all observed sites of some draws."""
    observed = sites.observed_sites(draws.model)
    summed = set() if draws.summed_out is None else draws.summed_out.names
    alone = [
        Likelihood((name,), site["log_prob"], _frames(site), mask=sites.mask_of(site))
        for name, site in observed.items()
        if name not in summed
    ]
    return alone + [_summed(draws, part) for part in _parts(draws, summed) if part & set(observed)]


def factors_of_data(draws: Draws) -> list[str]:
    """Each `pyro.factor` in a plate of data that says more than what is possible."""
    plates = {f.name for s in sites.observed_sites(draws.model).values() for f in _frames(s)}
    return [
        site["name"]
        for site in sites.random_sites(draws.model)
        if sites.is_factor(site)
        and plates & {frame.name for frame in _frames(site)}
        and not _is_of_possible(site["log_prob"])
    ]


def _is_of_possible(log_prob: Tensor) -> bool:
    """Whether a log-density is zero or minus infinity, as far as it may be looked at."""
    if is_batchedtensor(log_prob):  # of draws side by side; the first one was alone
        return True
    return bool(((log_prob == 0) | log_prob.isneginf()).all())


def _parts(draws: Draws, summed: set[str]) -> list[set[str]]:
    """The sites that depend on enumerated ones, those together that share one."""
    parts: list[tuple[set[str], set[str]]] = []  # names, and the dimensions that are summed over
    dims = {
        name: set(packed_dims(site["packed"]["log_prob"]))
        for name, site in draws.model.nodes.items()
        if name in summed
    }
    every = {draws.model.nodes[name]["infer"].get("_enumerate_symbol") for name in summed}
    for name, own in dims.items():
        names, symbols = {name}, own & every
        for part in [part for part in parts if part[1] & symbols]:
            parts.remove(part)
            names, symbols = names | part[0], symbols | part[1]
        parts.append((names, symbols))
    return [names for names, _ in parts]


def _summed(draws: Draws, part: set[str]) -> Likelihood:
    """The likelihood of the observed sites of a part, its enumerated ones summed over."""
    observed = [name for name in sites.observed_sites(draws.model) if name in part]
    enumerated = [
        name for name in draws.model.nodes if name in part and _is_enumerated(draws, name)
    ]
    names = tuple(observed)
    (term,) = _contract(draws, part)
    frames = tuple(f for f in _frames(draws.model.nodes[names[0]]) if _keeps(term, f))
    if not _are_told_apart([draws.model.nodes[name] for name in names], frames):
        return Likelihood(names, None, frames, tuple(enumerated))
    value = _over(term, frames)
    if part != {*names, *enumerated}:  # latents that were drawn depend on the enumerated ones, too
        for other in _contract(draws, part - set(names)):
            value = value - _over(other, frames)
    masks = [sites.mask_of(draws.model.nodes[name]) for name in names]
    mask = _over(masks[0], frames) > 0 if len(masks) == 1 and masks[0] is not None else None
    compact = tuple(f._replace(dim=i - len(frames)) for i, f in enumerate(frames))
    return Likelihood(names, value, compact, tuple(enumerated), mask)


def _is_enumerated(draws: Draws, name: str) -> bool:
    site = draws.model.nodes[name]
    return not site["is_observed"] and name not in draws.guide.nodes


def _contract(draws: Draws, names: set[str]) -> list[Tensor]:
    """What is left of some sites after the sum over those that are enumerated."""
    trace = poutine.Trace()
    for name, site in draws.model.nodes.items():
        if name in names:  # packed anew: other sites may have other symbols
            trace.add_node(name, **{key: x for key, x in site.items() if key != "packed"})
    return sum_out(trace, draws.guide).terms


def _frames(site: dict) -> Frames:
    """The plates of a site from the left to the right."""
    frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
    return tuple(sorted(frames, key=lambda frame: frame.dim))


def _keeps(term: Tensor, frame: CondIndepStackFrame) -> bool:
    """Whether a term has a number for each entry of a plate."""
    return term.dim() >= -frame.dim and term.shape[frame.dim] == frame.size


def _are_told_apart(observed: list[dict], frames: Frames) -> bool:
    """Whether numbers for the entries of these plates are numbers of rows."""
    plates = {frame.name for frame in frames}
    if any(sites.in_data_plate(site) for site in observed):
        return "data" in plates
    return bool(plates) or (len(observed) == 1 and not _frames(observed[0]))


def _over(value: Tensor, frames: Frames) -> Tensor:
    """The sum over all dimensions but those of these plates."""
    kept = {frame.dim for frame in frames}
    others = [dim for dim in range(-value.dim(), 0) if dim not in kept]
    return value.sum(others) if others else value
