"""Draws that MCMC has made, as the groups of ArviZ."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.mcmc.api import AbstractMCMC
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_models.infer.evidence.arviz import BATCH, Names, collect, to_arviz
from ppl_models.infer.evidence.joint import sampling
from ppl_models.infer.programs.program import Program
from ppl_models.infer.programs.pyro_internals import is_made, run_of
from ppl_models.infer.trials.same import check_same


def from_pyro_mcmc(
    mcmc: Any,
    *,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Names | None = None,
    seed: int | None = None,
) -> Any:
    """Returns the draws of a `pyro.infer.MCMC` run as ArviZ reads them.

    The groups are those of `from_pyro_svi`, for the arguments of `mcmc.run`; `sample_stats` holds
    `log_p` and `diverging`.

    Arguments:
        mcmc: A run of a model, with any number of chains.
        coords: Labels along dimensions.
        dims: Names for the event dimensions of sites.
        seed: Seeds the predictive draws; by default they come from torch's generator.

    Raises:
        TypeError: If it is no run of Pyro's.
        ValueError: If the sampler has not run, or parameters that it ran with are gone.

    Example:
        >>> import arviz as az
        >>> import pyro
        >>> from pyro import distributions as dist
        >>> def model(x):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> counts = torch.tensor([2.0, 3.0, 4.0])
        >>> kernel = pyro.infer.NUTS(model)
        >>> mcmc = pyro.infer.MCMC(kernel, 200, warmup_steps=50, disable_progbar=True)
        >>> pyro.set_rng_seed(0)
        >>> mcmc.run(counts)
        >>> rate = from_pyro_mcmc(mcmc)["posterior"]["rate"]
        >>> dict(rate.sizes), abs(float(rate.mean()) - 11 / 4) < 0.3  # exactly: Gamma(11, 4)
        ({'chain': 1, 'draw': 200}, True)
    """
    if not isinstance(mcmc, AbstractMCMC):
        kind = f"{type(mcmc).__module__}.{type(mcmc).__qualname__}"
        raise TypeError(
            f"mcmc: expected a pyro.infer.MCMC that has run, got {kind}. Try "
            f"arviz.from_numpyro(mcmc) for a run of NumPyro's, or nuts(model, *data)."
        )
    model, (samples, args, kwargs) = getattr(mcmc.kernel, "model", None), run_of(mcmc)
    if model is None or not samples:
        raise ValueError("mcmc: expected a run of a model, got none. Try mcmc.run(*data) first.")

    data = [*samples.values(), *(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))]
    check_same("from_pyro_mcmc", (model,), data, seed=seed)

    def program(*_: Tensor, size: int | None = None) -> Any:
        with _AsItRan():  # no `Program`: it ran in Pyro's own store
            return model(*args, **kwargs)

    values = next(iter(samples.values()))
    chains, number = values.shape[:2]
    first = torch.zeros(1, dtype=torch.long, device=values.device)
    with sampling(
        program, replayed(samples), (first,), seed, numbered=True, what="from_pyro_mcmc"
    ) as joint:
        groups = collect(joint, dims, chains * number, BATCH, chains)
    groups["sample_stats"].pop("log_q")  # of points, which have none
    groups["sample_stats"]["diverging"] = ["chain", "draw"], _diverging(mcmc, chains, number)
    arguments = Program(model, "model").name_arguments(args) | kwargs
    return to_arviz(groups, arguments, coords or {})


class _AsItRan(Messenger):
    """Raises where a model makes parameters anew: the draws are of the ones that it had."""

    def _pyro_param(self, message: dict) -> None:
        if is_made(message):
            raise ValueError(
                f"parameter {message['name']!r}: it is no more in Pyro's store, where the sampler "
                f"had it, and would be made anew. Expected the parameters of the run; they are "
                f"gone where the store was cleared, or where chains ran in processes of their own. "
                f"Try num_chains=1, or model(*data) once before mcmc.run."
            )


def replayed(samples: dict[str, Tensor]) -> Callable[..., None]:
    """The draws of all chains as a guide, a program of the number of a draw."""
    flat = {name: values.flatten(0, 1) for name, values in samples.items()}

    def guide(number: Tensor, size: int | None = None) -> None:
        for name, values in flat.items():
            value = values.index_select(0, number[:1])[0]
            pyro.sample(name, pyro.distributions.Delta(value).to_event())

    return guide


def _diverging(mcmc: Any, chains: int, number: int) -> np.ndarray:
    """Which draws came from a trajectory that diverged."""
    diverging = np.zeros((chains, number), dtype=bool)
    for chain, where in enumerate(mcmc.diagnostics().get("divergences", {}).values()):
        diverging[chain, where] = True
    return diverging
