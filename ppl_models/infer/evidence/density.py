r"""The log-density of a trace, with enumerated sites summed out.

.. math:: \log p(x, z) = \log \sum_k p(x, z, k)
"""

import torch
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from torch import Tensor

from ppl_models.infer.evidence.draws import SummedOut, row_dim
from ppl_models.infer.programs import sites
from ppl_models.infer.programs.pyro_internals import model_factors, packed_dims


def sum_out(model: poutine.Trace, guide: poutine.Trace) -> SummedOut:
    r"""The enumerated sites, and those that depend on them: :math:`\log \sum_k p(x, k)`."""
    guide.pack_tensors()
    model.pack_tensors(guide.plate_to_symbol)
    _, factors, _, summed, _ = model_factors(model, guide)
    names = {
        name
        for name, site in model.nodes.items()
        if site["type"] == "sample"
        and not summed.isdisjoint(packed_dims(site["packed"]["log_prob"]))
    }
    terms = [
        packed.unpack(term, model.symbol_to_dim)
        for part in contract_tensor_tree(factors, summed).values()
        for term in part
    ]
    return SummedOut(names, terms)


def log_density(
    trace: poutine.Trace,
    rows: int | None,
    device: torch.device,
    summed_out: SummedOut | None = None,
) -> Tensor:
    """The log-density of a trace: of each of `rows` rows, `(rows,)`, or with None in all, `(1,)`.

    In float64: the sum over all rows of float32 numbers would lose digits.
    """
    terms = [
        (site["log_prob"], row_dim(site))
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and (summed_out is None or name not in summed_out.names)
    ]
    if summed_out is not None:
        observed = sites.observed_sites(trace)
        terms += [(term, row_dim(next(iter(observed.values())))) for term in summed_out.terms]
    place = device if device.type != "mps" else torch.device("cpu")
    total = torch.zeros(rows or 1, device=place, dtype=torch.float64)
    for term, dim in terms:
        term = term.to(place, torch.float64)
        if rows is None:
            term = term.sum()
        elif term.dim() > 1:
            term = term.movedim(dim, 0).flatten(1).sum(1)
        total = total + term
    return total
