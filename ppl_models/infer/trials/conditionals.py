r"""Whether a site that says it is a pseudo-likelihood is one: a product of conditionals.

.. math:: \log \mathrm{PL}(x) = \sum_i \log p(x_i \mid x_{-i})

A distribution says so by `is_pseudo_likelihood = True`, and gives its terms by
`log_conditionals(value, given)`: of each entry of a value, given the other entries of another. That
is tried: a term must not change with the entry that it is of, be a probability over its values, and
all of them must sum to the log-probability.

Shapes: `B` rows, `L` entries of a row, `V` values of an entry.
"""

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import constraints

from ppl_models.infer.programs import sites

PLACES = 8  # entries that are changed, one after the other
ROUNDING = 1e-4


def pseudo_likelihoods(model: poutine.Trace) -> dict[str, dict]:
    """The observed sites that say they are pseudo-likelihoods."""
    observed = sites.observed_sites(model).items()
    return {name: site for name, site in observed if _says_so(site["fn"])}


def check_conditionals(model: poutine.Trace) -> None:
    """Raises a ValueError where a site that says it is a pseudo-likelihood is none."""
    for name, site in pseudo_likelihoods(model).items():
        fn, value = sites.base(site["fn"]), site["value"]
        terms = fn.log_conditionals(value, value)  # (B, L)
        if not _close(terms.sum(-1), fn.log_prob(value)):
            raise ValueError(
                f"site {name!r}: it says that it is a pseudo-likelihood, and its log_prob is not "
                f"the sum of its log_conditionals. Expected each entry given all others, once."
            )
        for i in torch.linspace(0, value.shape[-1] - 1, PLACES).long().unique().tolist():
            _check_place(name, fn, value, terms[..., i], i)


def _check_place(
    name: str, fn: TorchDistributionMixin, value: Tensor, terms: Tensor, i: int
) -> None:
    first, last = _ends(name, fn)
    changed = value.clone()
    changed[..., i] = torch.where(value[..., i] < last, value[..., i] + 1, first)
    if not _close(fn.log_conditionals(value, changed)[..., i], terms):
        raise ValueError(
            f"site {name!r}: the conditional of entry {i} depends on the entry itself, so that "
            f"this is no pseudo-likelihood, and any entry can be foreseen. Expected each entry "
            f"given all others. Try a network without sees_itself=False, which is then run with "
            f"each entry hidden."
        )
    values = torch.arange(first, last + 1, device=value.device)  # (V,)
    spread = values.view(-1, *[1] * value.dim()).expand(-1, *value[:1].shape)
    total = fn.log_conditionals(spread.to(value), value[:1])[..., i].logsumexp(0)
    if not _close(total, torch.zeros_like(total)):
        raise ValueError(
            f"site {name!r}: the conditional of entry {i} sums to {total.exp().flatten()[0]:.4g} "
            f"over its {len(values)} values. Expected probabilities, which sum to 1."
        )


def _ends(name: str, fn: TorchDistributionMixin) -> tuple[int, int]:
    """The first and the last value of an entry."""
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean:
        return 0, 1
    if not isinstance(support, constraints.integer_interval):
        raise ValueError(
            f"site {name!r}: a pseudo-likelihood is tried over all values of an entry; expected "
            f"a support of truth values or of integers from one to another, got {support}. Try "
            f"constraints.independent(constraints.integer_interval(1, num_words), 1)."
        )
    return int(support.lower_bound), int(support.upper_bound)


def _says_so(fn: TorchDistributionMixin) -> bool:
    return getattr(sites.base(fn), "is_pseudo_likelihood", False) is True


def _close(first: Tensor, second: Tensor) -> bool:
    return bool(((first - second).abs() <= ROUNDING * (1 + second.abs())).all())
