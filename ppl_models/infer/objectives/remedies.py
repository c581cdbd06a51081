r"""The evidence lower bound with another weight on what the latents cost, against their collapse.

.. math::
    -\mathbb{E}_q \left[ \log p(x \mid z) \right]
    + \beta \, w_t \sum_k \max \left( \lambda, \mathrm{KL}_k \right), \qquad
    w_t = \min \left( 1, \frac{t}{T} \right), \qquad
    \mathrm{KL}_k = \frac{1}{B} \sum_b \mathrm{KL}(q(z_k \mid x_b) \,\|\, p(z_k))

with :math:`\beta` the weight, :math:`\lambda` the nats of a latent that are free, and `T` the steps
of the warm-up. With :math:`\beta = 1`, :math:`\lambda = 0` and after the warm-up it is the bound;
else it is not, whatever its use for the training, and is called so. Minus it lies above the bound
where :math:`\beta w_t < 1`, and may lie above the evidence; free latents and larger weights put it
below.

Shapes: `B` rows of a minibatch, `K` latents of a row.

References:
    | Generating Sentences from a Continuous Space (Bowman et al., 2016), of the warm-up
    | https://arxiv.org/abs/1511.06349
    | Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016), of
    | free bits, https://arxiv.org/abs/1606.04934
    | beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.infer.elbo import ELBO
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppl_models.checks import check_positive
from ppl_models.infer.objectives.elbo import EvidenceLowerBound
from ppl_models.infer.objectives.estimators import DirectELBO, DirectEnumELBO
from ppl_models.infer.programs import sites
from ppl_models.infer.programs.pyro_internals import traces


class RemediedBound(EvidenceLowerBound):
    """The objective that `elbo` returns with `beta`, `free_bits` or `warm_up`.

    While its modules are in training mode its loss is not the bound; in evaluation mode, and so
    on validation data and after a fit, it is the bound.

    Attributes:
        weights: What the latents cost, and how many steps of the warm-up were taken: a module, so
            that checkpoints hold it.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any] | None,
        estimator: ELBO | None,
        beta: float,
        free_bits: float,
        warm_up: int,
    ) -> None:
        super().__init__(model, guide, estimator)
        self.weights = Weights(beta, free_bits, warm_up)
        self.name = f"elbo with {self.weights.told()} (not the bound)"
        if self.estimator is not None:
            _check_estimator(self.estimator)

    def loss(self, *batch: Tensor, size: int | None = None) -> Tensor:
        if not self.weights.training:
            return super().loss(*batch, size=size)
        return self._weighted(batch, len(batch[0]) if size is None else size)

    def prepare(self, *batch: Tensor, size: int, data: tuple[Tensor, ...] | None = None) -> None:
        super().prepare(*batch, size=size, data=data)
        with torch.no_grad():
            loss = self._weighted(batch, size)
        self.weights.bound = self.weights.bound.to(loss)

    def modules(self) -> dict[str, nn.Module]:
        found = super().modules()
        for _, parameter in self.named_parameters():
            self.weights.to(parameter.device)
            break
        return {**found, "weights": self.weights}

    @property
    def reports(self) -> Mapping[str, Tensor]:  # type: ignore[override]
        """Minus the bound, from the draws of the last step, in nats per row."""
        return {"elbo": self.weights.bound.clone()}

    def stepped(self) -> None:
        self.weights.steps.add_(1)

    def _weighted(self, batch: tuple[Tensor, ...], size: int) -> Tensor:
        estimator = self.estimator or self._choose_estimator(batch, size)
        _check_estimator(estimator)
        if not self._knows_masks:
            self._learn_masks(batch, size)
        pairs = traces(estimator, self._model, self._guide, batch, {"size": size})
        rows = size if self._model.takes_size else len(batch[0])
        return self.weights(list(pairs), rows)


class Weights(nn.Module):
    """What latents cost, in place of their KL divergence.

    Arguments:
        beta: The weight of the divergence.
        free_bits: The nats of a latent that are free; 0 for none.
        warm_up: The steps in which the weight rises to `beta`; 0 for none.
    """

    def __init__(self, beta: float, free_bits: float, warm_up: int) -> None:
        super().__init__()
        check_positive(beta=beta)
        if not 0 <= free_bits < torch.inf:
            raise ValueError(f"free_bits: expected nats, zero or more, got {free_bits!r}. Try 0.1.")
        if isinstance(warm_up, bool) or not isinstance(warm_up, int) or warm_up < 0:
            raise ValueError(
                f"warm_up: expected a number of steps, zero or more, got {warm_up!r}. Try "
                f"10 * (len(x) // batch_size) for some ten epochs."
            )
        self.beta, self.free_bits, self.warm_up = beta, free_bits, warm_up
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # taken so far
        self.register_buffer("bound", torch.zeros(()))  # minus the bound, of the last loss

    steps: Tensor
    bound: Tensor

    def told(self) -> str:
        """The settings that are not those of the bound."""
        plain = {"beta": 1, "free_bits": 0, "warm_up": 0}
        given = {name: getattr(self, name) for name in plain}
        return ", ".join(f"{n}={v:g}" for n, v in given.items() if v != plain[n])

    def weight(self) -> Tensor | float:
        """The weight of the divergence in the next step."""
        if not self.warm_up:
            return self.beta
        return self.beta * ((self.steps + 1) / self.warm_up).clamp(max=1.0)

    def forward(self, pairs: list[tuple[poutine.Trace, poutine.Trace]], rows: int) -> Tensor:
        """Returns the loss of traces of the model and the guide, a pair for each particle.

        Arguments:
            pairs: The traces, with their log-densities.
            rows: How many rows they count for, by which it is divided.
        """
        losses: list[Any] = []
        bounds: list[Any] = []
        for model, guide in pairs:
            latents = sites.latent_sites(model)
            _check_latents(latents, guide)
            fit = model.log_prob_sum(lambda name, _, latents=latents: name not in latents)
            prior = model.log_prob_sum(lambda name, _, latents=latents: name in latents)
            cost = guide.log_prob_sum() - prior
            bounds.append(cost - fit)
            if self.free_bits:
                cost = sum(self._beyond(latents[n], guide.nodes[n]) for n in latents)
            losses.append(self.weight() * cost - fit)
        scale = rows * len(pairs)
        self.bound.copy_((sum(bounds) / scale).detach())
        return sum(losses) / scale

    def _beyond(self, model: dict, guide: dict) -> Tensor:
        """The cost of a latent: of each of its elements the mean over rows, at least the free."""
        rows, divergence = _divergence(model, guide)  # (*, B, *)
        means = divergence.mean(rows)
        return model["scale"] * divergence.shape[rows] * means.clamp(min=self.free_bits).sum()


def _divergence(model: dict, guide: dict) -> tuple[int, Tensor]:
    """The KL divergences of the elements of a site in nats, and in which dimension rows are."""
    q, p, name = guide["fn"], model["fn"], model["name"]
    elementwise = all(not sites.base(fn).event_shape for fn in (p, q))
    masked = sites.is_masked(model) or sites.is_masked(guide)
    frames = [f for f in model["cond_indep_stack"] if f.name == "data" and f.vectorized]
    if not elementwise or masked or not frames or not _same_scale(model, guide):
        raise ValueError(_no_free(name, f"{sites.kind(q)} and {sites.kind(p)}"))
    try:
        divergence = kl_divergence(sites.base(q), sites.base(p))
    except NotImplementedError:
        raise ValueError(_no_free(name, f"{sites.kind(q)} and {sites.kind(p)}")) from None
    whole = torch.broadcast_shapes(q.batch_shape, p.batch_shape) + p.event_shape
    return frames[0].dim - len(p.event_shape), divergence.expand(whole)


def _same_scale(model: dict, guide: dict) -> bool:
    """Whether a site counts equally in both programs, by one number for all its rows."""
    plain = all(not isinstance(s["scale"], Tensor) or s["scale"].ndim == 0 for s in (model, guide))
    return plain and bool(model["scale"] == guide["scale"])


def _no_free(name: str, kinds: str) -> str:
    return (
        f"free_bits: expected latents of rows whose divergence from the prior is known for each "
        f"element, as that of a Normal from a Normal is, got the site {name!r}: {kinds}. All is "
        f"to be reparameterised, in data_plate, without a mask. Try warm_up or beta, which need "
        f"no formula."
    )


def _check_latents(latents: dict[str, dict], guide: poutine.Trace) -> None:
    """Raises where there is nothing to weigh, or a gradient would miss a part."""
    if not latents:
        raise ValueError(
            "elbo: expected a model with latents that cost something, got one without any. Try "
            "elbo(model, guide), whose loss has no divergence to be weighed."
        )
    for name, site in sites.latent_sites(guide).items():
        if not getattr(site["fn"], "has_rsample", False):
            raise ValueError(
                f"elbo: beta, free_bits and warm_up need a gradient through what the guide draws, "
                f"and its site {name!r}, a {sites.kind(site['fn'])}, has no reparameterisation. "
                f"Try elbo(model, guide), or a guide of Normal."
            )


def _check_estimator(estimator: ELBO) -> None:
    """Raises where the terms of the loss cannot be told apart, so that none can be weighed."""
    if type(estimator) is DirectELBO and not estimator.vectorize_particles:
        return
    got = type(estimator).__name__
    if isinstance(estimator, DirectELBO):
        got = "vectorised particles"
    elif isinstance(estimator, DirectEnumELBO):
        got = "enumerated sites, which are summed out together with their likelihood"
    raise ValueError(
        f"elbo: beta, free_bits and warm_up weigh what the drawn latents cost, and expected the "
        f"default estimator, or Trace_ELBO(num_particles=10), got {got}. Try one of these, and "
        f"programs whose latents are all drawn; or elbo(model, guide), whose weights are one."
    )
