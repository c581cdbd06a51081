r"""What is missing of rows, drawn given what is there.

.. math::
    x_m \sim p(x_m \mid x_o) = \int p(x_m \mid z) \, p(z \mid x_o) \, dz

where :math:`o` are the entries of a row that were observed and :math:`m` those that are missing.
The latents come from the guide, and are drawn again by their importance weights
:math:`p(x_o, z) / q(z \mid x_o)`: as the number of particles grows they are draws of the
posterior, whatever the guide. A model that knows :math:`p(x_m \mid x_o)` draws from that itself.

Shapes: `B` rows, `D` features, `S` draws, `P` particles.

References:
    | Using the SIR Algorithm to Simulate Posterior Distributions (Rubin, 1988)
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_models.checks import allows_missing, check_count, check_devices, check_tensors
from ppl_models.infer.compiled.side_by_side import Results
from ppl_models.infer.evidence.exact.closed_forms import HasImpute, is_of_its_program
from ppl_models.infer.evidence.joint import Joint, sampling
from ppl_models.infer.evidence.weights import Draws
from ppl_models.infer.programs import sites
from ppl_models.infer.programs.program import Program, modules_of_programs
from ppl_models.infer.programs.tables import as_rows
from ppl_models.infer.trials.same import check_same
from ppl_models.scoped import modes, own_rng

AT_ONCE = 100_000  # draws of rows that are weighed at once


def impute(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    x: Tensor,
    num_samples: int = 1,
    *,
    num_particles: int = 100,
    seed: int | None = None,
) -> Tensor:
    """Returns rows whose missing entries are drawn; those observed stay as they are.

    For models with latents of rows and `missing="marginalise"`, such as `VAE`. Where a model has a
    method `impute`, as mixtures and factor models have, its draws are exact, and there is no need
    of a guide, nor of particles. Processes that compute together share the rows, but not for exact
    draws, which each makes.

    Arguments:
        model: A Pyro program of rows with NaN.
        guide: Its guide, which takes such rows. It may be None where the model has `impute`, or
            knows its posterior, or enumerates all its latents.
        x: Rows with NaN where entries are missing, `(B, D)`.
        num_samples: The number of draws, `S`.
        num_particles: The number of draws from the guide that each is chosen from, for each row,
            `P`. Two draws may have the same latents, the more often the fewer there are.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Returns:
        The rows, with shape `(S, B, D)`.

    Raises:
        ValueError: If latents are shared by all rows, or the data do not fit the model.

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import VAE
        >>> from ppl_models.nn import MLP, MissingInput
        >>> guide = AmortizedNormal(3, 2, encoder=MissingInput(MLP(6, 4)))
        >>> x = torch.tensor([[1.0, float("nan"), 0.0]])
        >>> impute(VAE(3, 2, missing="marginalise"), guide, x, num_samples=10).shape
        torch.Size([10, 1, 3])
    """
    check_count(num_samples=num_samples, num_particles=num_particles)
    check_same(
        "impute",
        (model, guide),
        (x,),
        num_samples=num_samples,
        num_particles=num_particles,
        seed=seed,
    )
    (x,) = as_rows((x,), modules_of_programs(model, guide))
    if isinstance(model, HasImpute) and is_of_its_program(model, "impute"):
        return _exact(model, x, num_samples, seed)
    with sampling(model, guide, (x,), seed, what="impute") as joint:
        if not joint.tiled:
            raise ValueError(
                "impute: expected latents of rows that are independent of each other, and a guide "
                "that takes any rows, so that each row has weights of its own, got latents that "
                "all rows share, or a guide made for its rows. Try latents in data_plate(x, size), "
                "and an amortised guide, such as AmortizedNormal."
            )
        joint.check_known()
        parts = _slices(len(x), max(1, AT_ONCE // num_particles))
        here, drawn = joint.begin(lambda: _weighted(joint, slice(0, 2), 1, 2))
        of = partial(_weighted, joint, num_samples=num_samples, num_particles=num_particles)
        found = [results["x"] for _, results in joint.in_turn(here, drawn, parts, of)]
    return torch.cat(found, 1)


@torch.no_grad()
def _exact(model: HasImpute, x: Tensor, num_samples: int, seed: int | None) -> Tensor:
    """The draws of a model that knows the distribution of what is missing."""
    modules = Program(model, "model").modules()  # type: ignore[arg-type]
    check_devices(modules, (x,))
    check_tensors((x,), allows_missing([model]))
    with modes(modules.values(), training=False), ExitStack() as stack:
        if seed is not None:
            stack.enter_context(own_rng("impute", seed, x.device))
        drawn = model.impute(x, num_samples)
    if drawn.shape != (num_samples, *x.shape):
        raise ValueError(
            f"impute: expected {type(model).__name__}.impute(x, num_samples) to give rows of shape "
            f"{(num_samples, *x.shape)}, got {tuple(drawn.shape)}. Try that shape, or a model "
            f"without the method, whose missing entries a guide draws."
        )
    return drawn


def _weighted(joint: Joint, rows: slice, num_samples: int, num_particles: int) -> Results:
    """Some rows with what was missing, `(S, B, D)`."""
    draws = joint.draw(rows, num_particles)
    log_weight = draws.log_weight.T  # of particles, (B, P)
    chosen = torch.distributions.Categorical(logits=log_weight).sample((num_samples,))  # (S, B)
    x = joint.data[0][rows]
    name = _site_of(x, joint, draws)
    site = joint.predictive(draws, joint.latents(draws)).nodes[name]
    fresh = joint.unstack(draws, site, site["value"], x.ndim - 1)  # (P, B, D)
    every = chosen.to(fresh.device).unsqueeze(-1).expand(-1, -1, x.shape[1])
    return {"x": torch.where(x.isnan(), fresh.gather(0, every), x)}


def _site_of(x: Tensor, joint: Joint, draws: Draws) -> str:
    """The site that observes the rows: its data are they, wherever nothing is missing.

    Others may have their shape, such as one of which entries are missing.
    """
    there, found = ~x.isnan(), []
    for name, site in sites.observed_sites(draws.model).items():
        value = joint.unstack(draws, site, site["value"], x.ndim - 1)[0]
        if value.shape == x.shape and torch.equal(value[there].to(x), x[there]):
            found.append(name)
    if len(found) != 1:
        seen = ", ".join(map(repr, found)) or "none"
        raise ValueError(
            f"impute: expected one site of the model that observes the rows as they are given, "
            f"with any numbers where entries are missing, got {seen}. Try "
            f"pyro.sample('x', ..., obs=x) of the rows x themselves."
        )
    return found[0]


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
