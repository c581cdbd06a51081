r"""The denoising objective: the variational bound of a diffusion model at one step of each row.

.. math::
    -\log p(x) \le \mathrm{KL}(q(z_T \mid x) \,\|\, p(z_T)) - \mathbb{E}[\log p(x \mid z_0)]
    + T \, \mathbb{E}_{t \sim U\{1, \dots, T\}} \left[ \mathrm{KL}(
    q(z_{t-1} \mid z_t, x) \,\|\, p(z_{t-1} \mid z_t)) \right]

The program `elbo(diffusion, diffusion.noising)` has the same mean, and runs the network `T` times.

Shapes: `B` rows, `D` features, `T` steps.

References:
    | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
    | https://arxiv.org/abs/2006.11239
    | Variational Diffusion Models (Kingma et al., 2021), on the times of a batch
    | https://arxiv.org/abs/2107.00630
"""

from collections.abc import Iterator
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_models.checks import check_choice
from ppl_models.infer.objectives.objective import Objective
from ppl_models.infer.programs import checks, sites
from ppl_models.processes import places_of

WEIGHTS = ("bound", "simple")


class DiffusionModel(Protocol):
    """What a diffusion model offers: the terms of its bound, each at one draw, `(B,)`."""

    num_steps: int

    def check_condition(self, y: Tensor | None) -> None: ...
    def prior_divergence(self, x: Tensor) -> Tensor: ...
    def step_divergence(self, x: Tensor, step: Tensor, y: Tensor | None) -> Tensor: ...
    def reconstruction(self, x: Tensor, y: Tensor | None) -> Tensor: ...
    def squared_error(self, x: Tensor, log_snr: Tensor, y: Tensor | None) -> Tensor: ...
    def log_snrs(self) -> Tensor: ...
    def read(self, z: Tensor) -> Any: ...
    def named_parameters(self) -> Iterator[tuple[str, Tensor]]: ...


def denoising(diffusion: DiffusionModel, weights: str = "bound") -> "Denoising":
    r"""Denoising at a random step of each row, as an objective that `fit` descends.

    The data are rows, or rows and their labels, `(x, y)`, for a network that takes them.

    Arguments:
        diffusion: A diffusion model.
        weights: `"bound"`: those of the variational bound; the loss is then a draw of minus the
            bound in nats per row. `"simple"`: those of Ho et al., under which the loss is the
            squared error of the noise, :math:`\mathbb{E} \lVert \epsilon - \hat{\epsilon} \rVert^2
            = \mathbb{E} \, e^{\lambda_t} \lVert x - \hat{x} \rVert^2`, no bound and not in nats.

    Raises:
        TypeError: If it is no diffusion model.
        ValueError: If there are no such weights, or the simple ones would train a schedule: they
            are least where there is nothing to denoise.

    Example:
        >>> from ppl_models import fit
        >>> from ppl_models.diffusion.model import Diffusion
        >>> objective = denoising(Diffusion(num_features=3))
        >>> run = fit(objective, torch.randn(100, 3), epochs=3, batch_size=20, seed=0)
        >>> run.steps, len(run.history["loss"])
        (15, 3)
    """
    return Denoising(diffusion, weights)


def check_diffusion(diffusion: object, where: str, instead: str) -> None:
    """Raises a TypeError that says what to try `instead`, unless it is a diffusion model."""
    if isinstance(diffusion, type) or not hasattr(diffusion, "step_divergence"):
        kind = diffusion if isinstance(diffusion, type) else type(diffusion)
        raise TypeError(
            f"{where}: expected a diffusion model, got {kind.__name__}. "
            f"Try Diffusion(num_features=64), or {instead}."
        )


def check_data(
    diffusion: DiffusionModel, batch: tuple[Tensor, ...], data: tuple[Tensor, ...]
) -> bool:
    """Raises unless rows, and labels, fit a diffusion model; returns whether they are discrete.

    Raises:
        TypeError: If there are other data beside rows and labels.
        ValueError: If the shape of rows is another, they are no levels of the model's likelihood,
            or labels are out of range.
    """
    if not 1 <= len(batch) <= 2:
        raise TypeError(
            f"data: expected rows x, or rows and their labels (x, y), got {len(batch)} tensors."
        )
    diffusion.check_condition(data[1] if len(data) == 2 else None)
    diffusion.prior_divergence(batch[0])  # for its checks
    density = diffusion.read(torch.zeros_like(batch[0]))
    with pyro.validation_enabled(False):
        trace = poutine.trace(lambda x: pyro.sample("x", density, obs=x)).get_trace(batch[0])
    checks.check_support(trace, batch[:1], data[:1])
    return sites.is_discrete(trace.nodes["x"])


class Denoising(Objective):
    """The objective that `denoising` returns."""

    name = "denoising"

    def __init__(self, diffusion: DiffusionModel, weights: str) -> None:
        check_diffusion(diffusion, "denoising", "elbo(model, guide)")
        check_choice("weights", weights, WEIGHTS)
        schedule = getattr(diffusion, "schedule", None)
        learned = isinstance(schedule, nn.Module) and any(
            p.requires_grad for p in schedule.parameters()
        )
        if weights == "simple" and learned:
            raise ValueError(
                "weights: the simple ones are least for a schedule with nothing to denoise, and "
                "this one is learned. Try weights='bound', or .requires_grad_(False)."
            )
        self.diffusion = diffusion
        self.weights = weights

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        return sum(self._terms(*batch).values(), batch[0].new_zeros(())).mean()

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        with torch.no_grad(), pyro.validation_enabled(False):
            check_data(self.diffusion, batch, data or batch)
            self.loss(*batch, size=size)

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.diffusion.named_parameters():
            yield f"model.{name}", parameter

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.diffusion}  # type: ignore[dict-item]

    @torch.no_grad()
    def blame(self, *batch: Tensor, size: int) -> str:
        for name, term in self._terms(*batch).items():
            if not term.isfinite().all():
                bad = int((~term.isfinite()).sum())
                return f"the first such term is the {name}, in {bad} of {len(term)} rows"
        return "every term is finite by itself; the sum is not"

    def _terms(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """The terms of the loss of each row, (B,), in nats under the weights of the bound."""
        steps = self.diffusion.num_steps
        # One draw and even spacing: the same marginals as B draws, and less noise in their mean.
        places, total = places_of(len(x), x.device)
        u = torch.rand((), device=x.device) + places / total
        step = 1 + ((u % 1) * steps).long().clamp(max=steps - 1)  # (B,), from 1 to T
        if self.weights == "simple":
            log_snr = self.diffusion.log_snrs()[step]
            error = self.diffusion.squared_error(x, log_snr, y)
            return {"error of the noise": log_snr.exp() * error}
        return {
            "divergence from the prior": self.diffusion.prior_divergence(x),
            "denoising": steps * self.diffusion.step_divergence(x, step, y),
            "reconstruction": -self.diffusion.reconstruction(x, y),
        }
