r"""How far the aggregate posterior of a variational autoencoder is from its prior.

.. math::
    q(z) = \frac{1}{N} \sum_n q(z \mid x_n), \qquad
    \frac{1}{N} \sum_n \mathrm{KL}(q(z \mid x_n) \,\|\, p(z))
    = I(n; z) + \mathrm{KL}(q(z) \,\|\, p(z))

The term that the ELBO pays for its latents has two parts: what a latent tells of its row,
:math:`I(n; z) \le \log N`, and what the prior does not look like the latents of all rows, which
a better prior would save. Where the second is large, fresh rows come from places where no row of
the data was ever encoded.

Latents are drawn from the guide, :math:`S` of each row, and weighed by all :math:`N` posteriors:

.. math::
    I(n; z) = \frac{1}{N S} \sum_{n, s} \log q(z_{ns} \mid x_n) - \log q(z_{ns})

A latent of one dimension is integrated on a grid instead.

Shapes: `N` rows, `S` draws, `K` latents, `P` points.

References:
    | ELBO surgery: yet another way to carve up the variational evidence lower bound
    | (Hoffman & Johnson, 2016)
    | http://approximateinference.org/accepted/HoffmanJohnson2016.pdf
    | Importance Weighted Autoencoders (Burda et al., 2016), of active units
    | https://arxiv.org/abs/1509.00519
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_models.autoencoders.overlap import Posteriors, at, in_parts, log_first, measure
from ppl_models.autoencoders.surgery import Aggregate
from ppl_models.checks import check_at_least, check_count
from ppl_models.infer.compiled.side_by_side import Results
from ppl_models.infer.evidence.joint import Joint, sampling
from ppl_models.infer.evidence.weights import Draws
from ppl_models.infer.programs import sites
from ppl_models.infer.trials.auxiliary import Draw
from ppl_models.infer.trials.points import point_sites
from ppl_models.infer.trials.same import check_same
from ppl_models.scoped import kept_rng


def aggregate(
    vae: Callable[..., Any],
    guide: Callable[..., Any],
    *data: Tensor,
    num_samples: int = 10,
    batch_size: int = 512,
    seed: int | None = None,
) -> Aggregate:
    r"""Returns how far the aggregate posterior of some rows is from the prior, in nats per row.

    Both parts are of these rows: with more rows like them :math:`I(n; z)` rises, and the distance
    of their aggregate from the prior falls. They come from draws, with a Monte Carlo error; the
    moments of Gaussian posteriors, and their mean KL under a Gaussian prior, from formulas.

    Each draw is weighed by the posteriors of all rows, in a time that grows as
    :math:`S N^2 K`: give it some thousand rows at most. A latent of one dimension with Gaussian
    posteriors and a prior of Gaussians is integrated, without a Monte Carlo error.

    Processes share the draws, as in `log_evidence`; each weighs all of them.

    Arguments:
        vae: A Pyro program with one continuous latent for each row, whose prior is the same for
            all rows.
        guide: Its guide, with a density of that latent.
        data: Two rows or more, as the model takes them.
        num_samples: The number of draws from the guide for each row, `S`, two or more.
        batch_size: How many rows are encoded at once.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Returns:
        An `Aggregate`, which prints as a table, and draws q(z) over p(z) by `plot()`.

    Raises:
        ValueError: If there is no latent, or none of rows, or more than one; if its prior differs
            between rows; if the guide is a point; or if there is one row.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import ProbabilisticPCA
        >>> x = torch.randn(50, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        >>> model = ProbabilisticPCA(num_features=6, num_factors=2).maximum_likelihood(x)
        >>> found = aggregate(model, ExactPosterior(model), x, seed=0)
        >>> found.information.value < torch.tensor(50.0).log(), found.active.tolist()
        (tensor(True), [True, True])
        >>> torch.allclose(found.covariance, torch.eye(2).double(), atol=1e-4)  # as the prior's
        True
    """
    check_at_least(2, num_samples=num_samples)
    check_count(batch_size=batch_size)
    check_same(
        "aggregate", (vae, guide), data, num_samples=num_samples, batch_size=batch_size, seed=seed
    )
    with sampling(vae, guide, data, seed) as joint:
        name = _latent(joint)
        drawn = _draw(joint, name, num_samples, batch_size)
        with kept_rng(joint.data[0].device):
            posteriors = _posteriors(joint, name, batch_size)
        prior = joint.first.model.nodes[name]["fn"]
        _check_prior(name, drawn, prior)
        _check_guide(name, drawn, posteriors)
        return measure(drawn["z"], drawn["log_q"], drawn["log_p"], posteriors, prior)


def _latent(joint: Joint) -> str:
    """The one latent of each row, or an error that says what there is."""
    names = [name for name in joint.latent if name not in joint.enumeration.names]
    where, known = "aggregate", "a VAE, with AmortizedNormal as its guide"
    if not names:
        raise ValueError(f"{where}: the model has no latent to draw. Expected {known}.")
    shared = [name for name in names if not sites.in_data_plate(joint.latent[name])]
    if shared or not joint.by_row:
        what = ", ".join(map(repr, shared)) or "those that depend on each other"
        raise ValueError(
            f"{where}: expected latents of rows, each by itself, got {what} shared by all rows, "
            f"which have one posterior and no aggregate. Try {known}, with its latent in "
            f"data_plate(x, size)."
        )
    drawn = set(sites.latent_sites(joint.first.guide)) | set(names)
    if len(drawn) > 1:
        raise ValueError(
            f"{where}: expected one latent of each row, got the sites "
            f"{', '.join(map(repr, sorted(drawn)))}, of which the density of one depends on the "
            f"others. Try {known}."
        )
    _check_site(joint, names[0])
    return names[0]


def _check_site(joint: Joint, name: str) -> None:
    model, guide = joint.first.model.nodes[name], joint.first.guide.nodes[name]
    if joint.num_rows < 2:
        raise ValueError(
            "aggregate: expected two rows or more, got one, whose posterior is the aggregate. "
            "Try all rows of the data."
        )
    if sites.is_discrete(model):
        raise ValueError(
            f"aggregate: expected a continuous latent, got {sites.kind(model['fn'])} at {name!r}."
        )
    if sites.is_masked(model) or sites.is_masked(guide):
        raise ValueError(
            f"aggregate: expected the latent {name!r} of each row, got a masked one. "
            f"Try the rows that have it."
        )
    joint.check_points(_check_no_point)
    for site, who in ((model, "model"), (guide, "guide")):
        shape = site["fn"].batch_shape
        if len(shape) != 1:
            raise ValueError(
                f"aggregate: expected the {who} to have the density of {name!r} of a row in that "
                f"site, with batch shape (rows,), got {sites.kind(site['fn'])} with batch shape "
                f"{tuple(shape)}. Try .to_event(1) in the place of a plate."
            )


def _check_no_point(model: poutine.Trace, guide: poutine.Trace, draw: Draw) -> None:
    for name in point_sites(model, guide, draw):
        raise ValueError(
            f"aggregate: expected a guide that spreads, got a point at {name!r}, which has no "
            f"density, and is infinitely far from the prior. Try AmortizedNormal."
        )


def _draw(joint: Joint, name: str, num_samples: int, batch_size: int) -> Results:
    """Draws from the guide, `(S, N, *event)`, and what both programs say of them, `(S, N)`."""

    def of(draws: Draws) -> Results:
        guided, model = draws.guide.nodes[name], draws.model.nodes[name]
        return {
            "z": joint.unstack(draws, guided, guided["value"], guided["fn"].event_dim),
            "log_p": joint.unstack(draws, model, model["log_prob"], 0),
            "log_q": draws.log_q,
        }

    parts: dict[int, list[Results]] = {}
    for rows, results in joint.evaluate(of, num_samples, batch_size):
        parts.setdefault(rows.start, []).append(results)
    whole = {
        key: torch.cat([torch.cat([r[key] for r in part]) for part in parts.values()], 1)
        for key in ("z", "log_p", "log_q")
    }
    return whole | {"log_p": whole["log_p"].double()}


def _posteriors(joint: Joint, name: str, batch_size: int) -> list[Posteriors]:
    """The posteriors of all rows, as many in a part as are encoded at once."""
    width = batch_size if joint.tiled else joint.num_rows
    parts = [slice(i, min(i + width, joint.num_rows)) for i in range(0, joint.num_rows, width)]
    return [Posteriors(rows, joint.draw(rows, 1).guide.nodes[name]["fn"]) for rows in parts]


def _check_prior(name: str, drawn: Results, prior: Any) -> None:
    """Raises where a draw is none of the prior, or the prior of a row not that of the first row."""
    z = drawn["z"][0]
    if not prior.support.check(drawn["z"].unsqueeze(2)).all():
        raise ValueError(
            f"aggregate: the guide draws {name!r} where {sites.kind(prior)}, its prior, is zero, "
            f"infinitely far from it. Try a guide with the support of the prior."
        )
    if not _is_same(in_parts(partial(log_first, prior), prior, z), drawn["log_p"][0], z.dtype):
        raise ValueError(
            f"aggregate: expected a prior of {name!r} that is the same for all rows, got one that "
            f"differs between them, to which an aggregate has no distance. Try the rows of one "
            f"label."
        )


def _check_guide(name: str, drawn: Results, posteriors: list[Posteriors]) -> None:
    """Raises where densities at the points of other rows are not those of the program."""
    for part in posteriors:
        some = slice(part.rows.start, min(part.rows.start + 8, part.rows.stop))
        z, expected = drawn["z"][0, some], drawn["log_q"][0, some]
        found = expected.new_full((), torch.nan)
        with suppress(RuntimeError, ValueError):
            found = at(part.density, z).diagonal()
        if not _is_same(found, expected, z.dtype):
            raise ValueError(
                f"aggregate: the guide says another density of {name!r} than its site alone, as "
                f"where other sites count with it, where it draws another number each time that "
                f"it runs, or where its distribution does not broadcast. Try AmortizedNormal."
            )


def _is_same(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether log-densities are the same but for rounding, by a network before them, too."""
    error = 1e-6 if dtype == torch.float64 else 1e-2
    return torch.allclose(found, expected, rtol=error, atol=error)
