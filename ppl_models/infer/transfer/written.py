r"""Guides that state the density of each site themselves, in `pyro.sample` statements.

.. math:: q(\theta) = \prod_k q(\theta_k \mid \theta_{<k})

Such a guide runs along with the model, on what the model has drawn so far. That a factor depends
on nothing else is tried: not on the rows that the guide is called with (it would be a posterior of
the new rows), nor on their latents, on later sites or on auxiliary ones (it would be a draw of an
estimate).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_models.infer.programs import sites
from ppl_models.infer.programs.own import own_parameters
from ppl_models.infer.programs.program import Program
from ppl_models.scoped import kept_rng

TRIES = 8  # runs of the guide, on other rows and with other draws


class WrittenPrior:
    """The density of a guide that is a program, site by site.

    Arguments:
        guide: A fitted guide; it is copied, with what `pyro.param` statements of a function made.
        model: The model.
    """

    def __init__(self, guide: Callable[..., Any], model: Program) -> None:
        self.program = Program(copy.deepcopy(guide), "guide", model)
        self.is_function = self.program.owner is None
        if self.program.owner is not None:
            _settle(self.program.owner)
        store = pyro.get_param_store() if self.is_function else {}
        self.learned = Learned({name: x.detach().clone() for name, x in store.items()})
        self.tried: set[int] = set()  # numbers of tensors that it was called with
        self.trace = poutine.Trace()

    def begin(self, batch: tuple[Tensor, ...], size: int | None) -> None:
        """Takes the rows of a run of the model."""
        self.batch, self.size = batch, size
        self.trace = self._run(batch, {}, size)
        self.names = {
            name
            for name, site in sites.latent_sites(self.trace).items()
            if not sites.in_data_plate(site)
        }

    def distribution(
        self, name: str, values: dict[str, Tensor], like: Tensor
    ) -> TorchDistributionMixin:
        """Returns q of a site given the values of those before."""
        known = {n: x for n, x in values.items() if n in self.names}
        fn = (self._run(self.batch, known, self.size) if known else self.trace).nodes[name]["fn"]
        if sites.kind(fn) == "Delta":
            raise ValueError(
                f"guide: its site {name!r} is a point, or a function of others, and has no "
                f"density by itself. Try AutoNormal, or a distribution of {name!r} in its place."
            )
        return fn

    def end(self, values: dict[str, Tensor]) -> None:
        """Tries, once, that the density of each site is that of the sites before it alone."""
        count = len(self.batch)
        if count in self.tried or not all(isinstance(x, Tensor) for x in self.batch):
            return
        device = self.batch[0].device if self.batch else torch.device("cpu")
        with torch.no_grad(), kept_rng(device), self.program.noticing():
            known: dict[str, Tensor] = {}
            for name, value in values.items():
                if name in self.names:
                    self._try(name, value, known)
                    known = known | {name: value}
        self._check_alone()
        self.tried.add(count)

    def _try(self, name: str, value: Tensor, known: dict[str, Tensor]) -> None:
        expected = self._run(self.batch, known, self.size).nodes[name]["fn"]
        if not sites.is_discrete({"fn": expected}) and torch.equal(expected.sample(), value):
            raise ValueError(
                f"guide: its site {name!r} is a point, which no data would move. Try AutoNormal, "
                f"or another guide that spreads."
            )
        same = expected.log_prob(value)
        for trace in self._others(known):
            got = trace.nodes[name]["fn"].log_prob(value)
            if got.shape != same.shape or not torch.allclose(got, same, rtol=1e-4, atol=1e-6):
                raise ValueError(
                    f"guide: the density of its site {name!r} changes with the rows that it is "
                    f"called with, or with what it draws besides the sites before {name!r} in the "
                    f"model. Expected what was learned from the rows of before, and no more. Try "
                    f"an autoguide, such as AutoNormal, or a guide that holds those rows itself, "
                    f"as in lambda *new, size=None: guide(old_x)."
                )

    def _others(self, known: dict[str, Tensor]) -> Iterator[poutine.Trace]:
        """Traces on other rows, on fewer, and with other draws."""
        others = tuple((x == 0).to(x.dtype) for x in self.batch)  # each entry is another
        for batch in [self.batch, others] * (TRIES // 2):
            yield self._run(batch, known, self.size)
        with suppress(RuntimeError, ValueError, TypeError):  # it may take no other number of rows
            fewer = self._run(tuple(x[:1] for x in others), known, None)
            yield fewer

    def _check_alone(self) -> None:
        """Raises where a function uses a module, whose parameters may go on learning."""
        for name, module in self.program.modules().items() if self.is_function else ():
            if any(parameter.requires_grad for parameter in module.parameters()):
                raise ValueError(
                    f"guide: this function uses the module {name!r}, whose parameters may go on "
                    f"learning, and the prior with them. Try a guide that is a module, which is "
                    f"copied, or {name}.requires_grad_(False)."
                )

    def _run(
        self, batch: tuple[Tensor, ...], values: dict[str, Tensor], size: int | None
    ) -> poutine.Trace:
        """A trace of the guide with the values of some sites, which no handler outside sees."""
        with poutine.block(), self.learned if self.is_function else poutine.block():
            guide = poutine.condition(self.program, data=values)
            return poutine.trace(guide).get_trace(*batch, size=size)


class Learned(Messenger):
    """A handler that gives the `pyro.param` statements of a function what they had before.

    Arguments:
        values: The parameters by name, constrained.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values
        for value in values.values():
            value.unconstrained = value.clone  # type: ignore[attr-defined]  # as those in the store

    def _pyro_param(self, message: dict) -> None:
        name = message["name"]
        if name not in self.values:
            raise ValueError(
                f"guide: its parameter {name!r} was not in Pyro's store: the guide has not been "
                f"fitted. Try fit(elbo(model, guide), data, steps=1000) before."
            )
        message["value"], message["done"], message["stop"] = self.values[name], True, True


def _settle(module: nn.Module) -> None:
    """Has a module learn no more, also what `pyro.param` made in it."""
    module.eval()
    for parameter in [*module.parameters(), *own_parameters(module).values()]:
        parameter.requires_grad_(False)
