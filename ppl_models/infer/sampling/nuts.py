r"""NUTS for any program: draws from the posterior itself, beside which a guide can be judged.

The log-density of the latents on real numbers, discrete ones summed out, is traced, compared with
the program, and compiled with its gradient as one C function, which nutpie's sampler calls from a
thread for each chain. A density that cannot be traced is the program's own, slowly.

References:
    | The No-U-Turn Sampler (Hoffman & Gelman, 2014)
    | https://www.jmlr.org/papers/v15/hoffman14a.html
    | If only my posterior were normal: introducing Fisher HMC (Seyboldt et al., 2026)
    | https://github.com/pymc-devs/nutpie
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.infer.evidence.arviz import BATCH, Names, collect, to_arviz
from ppl_models.infer.evidence.joint import sampling
from ppl_models.infer.evidence.mcmc import replayed
from ppl_models.infer.programs import sites
from ppl_models.infer.programs.program import Program, modules_of_programs
from ppl_models.infer.programs.tables import as_rows, no_rows
from ppl_models.infer.sampling.chains import Chains, Settings, num_cores, nutpie, sample
from ppl_models.infer.sampling.density import Density
from ppl_models.infer.sampling.unconstrained import Unconstrained
from ppl_models.infer.trials.precision import in_double
from ppl_models.infer.trials.same import check_same
from ppl_models.scoped import modes, own_rng, seed_of

LATER = 4  # draws of each chain at which code and program are compared again
# What the sampler says of each draw, and its name among ArviZ's statistics.
KEPT = {
    **{"diverging": "diverging", "n_steps": "n_steps", "energy": "energy"},
    **{
        "step_size": "step_size",
        "depth": "tree_depth",
        "maxdepth_reached": "reached_max_treedepth",
    },
}


def nuts(
    model: Callable[..., Any],
    *data: Tensor,
    draws: int = 1000,
    tune: int = 1000,
    chains: int = 4,
    target_accept: float = 0.8,
    guide: Callable[..., Any] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Names | None = None,
    seed: int | None = None,
    progress: bool = True,
) -> Any:
    """Draws the latents of a program from their posterior by NUTS, and returns what ArviZ reads.

    Discrete latents with a finite support are summed out while it samples, and drawn afterwards
    given the others. Parameters (of modules, or by `pyro.param`) stay what they are. The density is
    computed in double precision. Beside the groups of `from_pyro_svi`, `sample_stats` holds `log_p`
    and what the sampler says of each draw: `diverging`, `n_steps`, `energy`, `step_size`.

    Processes that compute together, as `torchrun` starts them, share the chains; one whose chains
    take longer than those of others by more than the time-out of `torch.distributed` is given up.

    Arguments:
        model: A Pyro program.
        data: The rows, as the model takes them; none if it takes none.
        draws: Of each chain, after those of `tune`.
        tune: Draws by which each chain finds its step and its scales, left out.
        chains: How many, side by side on as many cores as there are.
        target_accept: The probability of acceptance to which steps are tuned. More makes smaller
            steps, as for densities on which draws diverge.
        guide: A fitted guide, from whose draws the chains start.
        coords: Labels along dimensions.
        dims: Names for the event dimensions of sites.
        seed: Seeds the chains and predictive draws; by default they come from torch's generator.
        progress: Whether to show a bar.

    Raises:
        ImportError: If nutpie is not installed.
        ValueError: If the model has no continuous latents, or discrete ones that cannot be summed
            out, or its density is not finite wherever it is tried.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> found = nuts(model, torch.zeros(100), draws=500, seed=0, progress=False)
        >>> abs(float(found.posterior["mean"].std()) - 0.1) < 0.01
        True
    """
    check_count(draws=draws, tune=tune, chains=chains)
    check_same(
        "nuts",
        (model, guide),
        data,
        draws=draws,
        tune=tune,
        chains=chains,
        target_accept=target_accept,
        seed=seed,
    )
    if not 0 < target_accept < 1:
        raise ValueError(f"target_accept: expected a number between 0 and 1, got {target_accept}.")
    nutpie()
    program = Program(model, "model")
    program.is_evaluated = True
    data = as_rows(data, modules_of_programs(model, guide))
    for n, x in enumerate(data):
        if isinstance(x, (list, tuple, dict)):
            raise TypeError(
                f"data[{n}]: expected what the model takes, a tensor for each argument, "
                f"{no_rows(x, program.argument_names)}"
            )
    seed = seed_of(seed)
    settings = Settings(draws, tune, chains, target_accept, seed, progress)
    with _evaluated(program, seed, chains):
        _check_device(program, data)
        unconstrained = Unconstrained(program, data)
        starts = None if guide is None else _starts(unconstrained, guide, chains)
        density = Density(unconstrained, starts)
        first = density.latents(density.probes[0].numpy())[None, None]
    bridge = _Bridge(unconstrained, data, coords or {}, dims, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come again
        bridge.of(first)  # what cannot be reported is said before the first step
    with _evaluated(program, seed, chains):
        density.compile(chains)
        found = _sample(density, settings)
    return bridge.of(found.latents, found.statistics)


class _Bridge(NamedTuple):
    """From draws of latents to what ArviZ reads."""

    unconstrained: Unconstrained
    data: tuple[Tensor, ...]
    coords: Mapping[str, Sequence[Any]]
    dims: Names | None
    seed: int

    def of(self, latents: np.ndarray, statistics: Mapping[str, np.ndarray] | None = None) -> Any:
        """All groups of draws, `(C, S, L)`, with what the sampler says of these."""
        samples = self.unconstrained.samples(torch.from_numpy(latents))
        (chains, draws), number = latents.shape[:2], torch.zeros(1, dtype=torch.long)
        with ExitStack() as stack:
            stack.enter_context(in_double())
            guide, seed = replayed(samples), self.seed
            joint = stack.enter_context(sampling(self._run, guide, (number,), seed, True, "nuts"))
            groups = collect(joint, self.dims, chains * draws, BATCH, chains)
        groups["sample_stats"].pop("log_q")  # of points, which have none
        for name, values in (statistics or {}).items():
            if name in KEPT:
                groups["sample_stats"][KEPT[name]] = ["chain", "draw"], values
        named = self.unconstrained.program.name_arguments(self.data)
        return to_arviz(groups, named, self.coords)

    def _run(self, *_: Tensor, size: int | None = None) -> Any:
        with in_double():  # one of its own: what a run writes is of no other
            return self.unconstrained.call(config_enumerate(self.unconstrained.program))


def _sample(density: Density, settings: Settings) -> Chains:
    """Draws by code, if it is still the program where the draws are, or by the program itself."""
    found = sample(density, settings)
    if density.native is not None:
        some = found.positions[:, :: max(1, settings.draws // LATER)].reshape(-1, density.size)
        if not density.stands_for_program(density.native, [*torch.from_numpy(some)]):
            density.native = None
            return sample(density, settings)
    return found


def _check_device(program: Program, data: tuple[Any, ...]) -> None:
    """Raises where something is on a device that the sampler is not on."""
    tensors = [x for module in program.modules().values() for x in module.state_dict().values()]
    for x in [*data, *tensors]:
        if isinstance(x, Tensor) and x.device.type != "cpu":
            raise ValueError(
                f"nuts: expected a model and data on the CPU, where it samples, got some on "
                f"{x.device}. Try model.cpu() and x.cpu()."
            )


@contextmanager
def _evaluated(program: Program, seed: int, chains: int) -> Iterator[None]:
    """A context in which a program is evaluated, with draws of its own, in each chain's thread."""
    before = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, before)
        torch.set_num_threads(max(1, min(before, num_cores() // chains)))
        stack.enter_context(torch.no_grad())
        stack.enter_context(modes(program.modules().values(), training=False))
        stack.enter_context(own_rng("nuts", seed, torch.device("cpu")))
        yield


def _starts(density: Unconstrained, guide: Callable[..., Any], chains: int) -> Tensor:
    """Positions of draws of a guide, `(C, D)`."""
    program = Program(guide, "guide", density.program)
    program.is_evaluated = True
    found = []
    for _ in range(chains):
        drawn = sites.latent_sites(density.call(poutine.trace(program).get_trace))
        if missing := sorted(density.parts.keys() - drawn.keys()):
            raise ValueError(
                f"guide: it does not draw the site(s) {', '.join(map(repr, missing))}, from which "
                f"the chains are to start. Expected a guide of all continuous latents."
            )
        found.append(density.of({name: drawn[name]["value"] for name in density.parts}))
    return torch.stack(found)
