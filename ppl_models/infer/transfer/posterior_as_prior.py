r"""Yesterday's posterior as today's prior.

With latents :math:`\theta` that all rows share, and a guide :math:`q(\theta)` fitted to the rows
:math:`D_1` of yesterday:

.. math::
    p(\theta, D_2 \mid D_1) \approx q(\theta) \, p(D_2 \mid \theta), \qquad
    p(D_2 \mid D_1) = \int p(\theta \mid D_1) \, p(D_2 \mid \theta) \, d\theta
    = \frac{p(D_1, D_2)}{p(D_1)}

It is exact where the guide is the posterior, and rows are independent given what they share.
Latents of rows are as in the model.

References:
    | Variational Continual Learning (Nguyen et al., 2018)
    | https://arxiv.org/abs/1710.10628
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_models.infer.programs import sites
from ppl_models.infer.programs.program import Program
from ppl_models.infer.transfer.gaussian import GaussianPrior, gaussians
from ppl_models.infer.transfer.written import WrittenPrior
from ppl_models.infer.trials.auxiliary import is_of_pyro


def posterior_as_prior(model: Callable[..., Any], guide: Callable[..., Any]) -> Callable[..., Any]:
    r"""Returns a model as a program whose shared latents have a fitted guide as their prior.

    It is a program like the model: it has its arguments, its sites and its parameters, which
    `fit` trains where there are some. The guide is copied as it is now, and learns no more. The
    evidence of new rows is :math:`\log p(D_2 \mid D_1)`, as far as the guide is the posterior.
    Sites that belong to a plate other than `"data"`, such as one of schools, are taken to be of
    the same schools.

    Arguments:
        model: A Pyro program.
        guide: Its fitted guide of the latents that all rows share: a Gaussian autoguide of Pyro
            (`AutoNormal`, `AutoDiagonalNormal`, `AutoMultivariateNormal`,
            `AutoLowRankMultivariateNormal`, what `laplace_approximation` returns, a list of them),
            or a program that states the density of each site by itself, in the order of the model.

    Raises:
        TypeError: If one of them is no program.
        ValueError: If the guide has not been fitted, is a point, has parameters for the latents of
            rows, or has no density that can be told; some of it where the program first runs.

    Example:
        >>> import pyro
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from ppl_models import LinearRegression, elbo, fit, log_evidence
        >>> model, x = LinearRegression(2, noise=0.5), torch.randn(20, 2)
        >>> y = x.sum(1) + 0.5 * torch.randn(20)
        >>> guide = AutoNormal(model)
        >>> run = fit(elbo(model, guide), (x[:10], y[:10]), steps=300, lr=0.05, seed=0)
        >>> today = posterior_as_prior(model, guide)
        >>> log_evidence(today, guide, x[10:], y[10:], seed=0).num_rows
        10
    """
    program = Program(model, "model")
    if isinstance(model, functools.partial) and model.func is _run:
        model = model.args[1]  # a guide of all shared latents leaves nothing of the prior before
    if isinstance(guide, GuideMessenger):
        raise ValueError(
            f"guide: {type(guide).__name__} runs its model for each draw, and no copy of it can "
            f"be kept. Try AutoNormal."
        )
    priors: list[GaussianPrior | WrittenPrior]
    if isinstance(guide, AutoGuide) and is_of_pyro(guide):
        priors = list(gaussians(guide))
    else:
        priors = [WrittenPrior(guide, program)]
    return functools.partial(_run, FromPosterior(priors), model)


def _run(prior: "FromPosterior", model: Callable[..., Any], *batch: Any, **kwargs: Any) -> Any:
    """Runs a model with another prior: what a handler of Pyro is around a program."""
    prior.begin(batch, kwargs.get("size"))
    with prior:
        returned = model(*batch, **kwargs)
    prior.end()
    return returned


class FromPosterior(Messenger):
    """A handler that gives the shared latents of a model the densities of a guide.

    Arguments:
        priors: The densities, each of some sites.
    """

    def __init__(self, priors: list[GaussianPrior | WrittenPrior]) -> None:
        super().__init__()
        self.priors = priors
        self.values: dict[str, Tensor] = {}
        self.dims: dict[str, int] = {}  # of a value of each site, without particles

    def begin(self, batch: tuple[Any, ...], size: int | None) -> None:
        """Begins a run of the model."""
        self.values = {}
        for prior in self.priors:
            if isinstance(prior, WrittenPrior):
                prior.begin(batch, size)

    def end(self) -> None:
        """Ends it: all that the guide tells of is to have been drawn."""
        for prior in self.priors:
            if missing := sorted(prior.names - self.values.keys()):
                raise ValueError(
                    f"guide: its site(s) {', '.join(map(repr, missing))} are none of the model, "
                    f"which has {', '.join(map(repr, self.values)) or 'none of its'}; what is "
                    f"auxiliary leaves no density of the others by themselves. Try the model "
                    f"that the guide was fitted with, or AutoNormal."
                )
            if isinstance(prior, WrittenPrior):
                prior.end(self.values)
        self.values = {}

    def _pyro_sample(self, message: dict) -> None:
        if message["is_observed"] or site_is_subsample(message):
            return
        name = message["name"]
        prior = next((prior for prior in self.priors if name in prior.names), None)
        if prior is None:
            _check_of_row(message)
            return
        _check_shared(message)
        own = message["fn"]
        fn = prior.distribution(name, self.values, _like(own))
        self._check_shape(name, own, fn)
        message["fn"] = fn

    def _check_shape(self, name: str, own: Any, fn: Any) -> None:
        """Raises where a site has another shape in the guide, particles on the left aside."""
        self.dims[name] = len(own.batch_shape) + len(own.event_shape)
        batch = fn.batch_shape
        if any(value.dim() > self.dims[n] for n, value in self.values.items()):
            batch = batch[max(0, len(batch) - len(own.batch_shape)) :]
        if (batch, fn.event_shape) != (own.batch_shape, own.event_shape):
            raise ValueError(
                f"site {name!r}: the model has shape {tuple(own.batch_shape)} (of plates) and "
                f"{tuple(own.event_shape)} (of events), the guide {tuple(fn.batch_shape)} and "
                f"{tuple(fn.event_shape)}. Try the model that the guide was fitted with."
            )

    def _pyro_post_sample(self, message: dict) -> None:
        if any(message["name"] in prior.names for prior in self.priors):
            self.values[message["name"]] = message["value"]


def _check_of_row(message: dict) -> None:
    """Raises where a latent that all rows share is none of the guide."""
    if not sites.in_data_plate(message):
        raise ValueError(
            f"guide: it says nothing of site {message['name']!r}, which all rows share, so that "
            f"what the rows of before told of it is not known. Try a guide of all of them, such "
            f"as AutoNormal(model)."
        )


def _check_shared(message: dict) -> None:
    if sites.in_data_plate(message):
        raise ValueError(
            f"guide: its site {message['name']!r} is shared by all rows, and in the model it "
            f"belongs to a row. Try the model that the guide was fitted with."
        )


def _like(fn: Any) -> Tensor:
    """A tensor with the precision and the device of a distribution."""
    tensors = (x for x in vars(sites.base(fn)).values() if isinstance(x, Tensor))
    return next((x for x in tensors if x.is_floating_point()), torch.zeros(()))
