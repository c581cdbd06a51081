"""The bridge to ArviZ: the posterior of a guide, with all its groups.

Names follow `arviz_base.from_numpyro_svi`: plates become dimensions, and the site's
`infer={"event_dims": ["factor"]}` names its event dimensions. The draws always have the dimensions
`chain` and `draw`, which `az.summary`, `az.loo` and the plots ask for.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
from pyro import poutine
from torch import Tensor

from ppl_models.checks import check_count
from ppl_models.infer.compiled.side_by_side import Results
from ppl_models.infer.evidence.joint import Joint, sampling
from ppl_models.infer.evidence.likelihood import Likelihood, factors_of_data, likelihoods
from ppl_models.infer.evidence.weights import Draws
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.pyro_internals import is_deterministic
from ppl_models.infer.trials.conditionals import pseudo_likelihoods
from ppl_models.infer.trials.points import check_meant
from ppl_models.infer.trials.same import check_same
from ppl_models.processes import together
from ppl_models.user_line import warn

if TYPE_CHECKING:
    import xarray

Names = Mapping[str, Sequence[str]]
MASK = "mask"  # no group: which entries of a log-likelihood are of data
BATCH = 4096  # draws of a row that are made at once
Arrays = dict[str, tuple[list[str], np.ndarray]]  # for each variable its dimensions and values
Groups = dict[str, Arrays]


def from_pyro_svi(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *data: Tensor,
    num_samples: int = 500,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Names | None = None,
    batch_size: int = BATCH,
    seed: int | None = None,
    progress: bool = True,
) -> Any:
    r"""Returns the posterior of a guide as ArviZ reads it.

    Groups: `posterior` (the latents, `pyro.deterministic` sites and what `poutine.reparam` makes
    of latents), `posterior_predictive`, `log_likelihood` (nats), `prior`, `prior_predictive` (not
    where a prior cannot be sampled), `observed_data`, `constant_data` (what the model is given and
    does not observe) and `sample_stats`: `log_p` and `log_q`, the joint log-densities of model and
    guide over all latents and rows.

    `log_likelihood` is one number for each row, over which enumerated sites are summed: those of
    observed sites that share one are named together (`"x+y"`), and sites whose rows an enumerated
    site ties together are left out, with a warning. Where data are masked, it holds the others,
    along `"x_entry"`. Of latents that are masked in part, as those of `obs_mask`, the posterior
    holds draws of the model's own there, of which the data say nothing.

    Processes share the draws, as in `log_evidence`.

    `az.loo` is meant for latents shared by all rows. With latents of a row (a VAE), leaving that
    row out changes its posterior altogether: use `log_evidence` there.

    Arguments:
        model: A Pyro program.
        guide: Its guide; None where all latents are enumerated, or the model has `posterior(x)`.
        data: The rows, as the model takes them; arrays and data frames become tensors.
        num_samples: The number of draws.
        coords: Labels along dimensions, such as `{"factor": ["ability"]}`.
        dims: Names for the event dimensions of sites, such as `{"z": ["factor"]}`.
        batch_size: How many draws are made at once, as in `log_evidence`.
        seed: Seeds draws of their own; by default they come from torch's generator.
        progress: Whether to show a progress bar (on a terminal), if it takes more than a second.

    Returns:
        `arviz.InferenceData` with ArviZ 0.x, `xarray.DataTree` with ArviZ 1.x.

    Example:
        >>> from guides import ExactPosterior
        >>> from ppl_models import FactorAnalysis
        >>> model = FactorAnalysis(num_features=5, num_factors=2)
        >>> x = model(size=7).detach()
        >>> posterior = from_pyro_svi(model, ExactPosterior(model), x, num_samples=50)
        >>> dict(posterior["posterior"]["z"].sizes)
        {'chain': 1, 'draw': 50, 'data': 7, 'z_dim_0': 2}
    """
    check_count(num_samples=num_samples, batch_size=batch_size)
    check_same(
        "from_pyro_svi",
        (model, guide),
        data,
        num_samples=num_samples,
        batch_size=batch_size,
        seed=seed,
    )
    with sampling(model, guide, data, seed, what="from_pyro_svi") as joint:
        checks.check_program(joint.first.model)
        joint.check_points(check_meant)
        unknown = joint.why_unknown()
        bar = "from_pyro_svi" if progress else None
        groups = collect(joint, dims, num_samples, batch_size, progress=bar)
    if unknown:
        warn(f"{unknown} The draws are of the guide; sample_stats has no 'log_q'.")
        groups["sample_stats"].pop("log_q")
    return to_arviz(groups, joint.arguments(), coords or {})


def collect(
    joint: Joint,
    dims: Names | None,
    num_samples: int,
    batch_size: int,
    chains: int = 1,
    progress: str | None = None,
) -> Groups:
    """The variables of all groups, with dimensions `chain` and `draw` in front."""
    variables = Variables(joint, dims or {})
    for rows, results in joint.evaluate(variables.of, num_samples, batch_size, progress):
        variables.add(rows, results)
    for caveat in _of_all(variables.caveats):
        warn(caveat)
    return variables.arrays(chains)


def _of_all(caveats: dict[tuple[str, ...], str]) -> list[str]:
    """What processes have found, each in its own draws."""
    told = together().gather_values([[list(names), text] for names, text in caveats.items()])
    return [*{tuple(names): text for one in told for names, text in one}.values()]


class Variables:
    """Gathers the variables of all groups, from one batch of draws after the other."""

    def __init__(self, joint: Joint, names: Names) -> None:
        self.joint, self.names = joint, names
        self.event_dims: dict[str, Sequence[str]] = {}
        self.dims: dict[tuple[str, str], list[str]] = {}
        self.discrete: set[tuple[str, str]] = set()
        self.caveats: dict[tuple[str, ...], str] = {}  # what there is no log-likelihood of, and why
        # For each variable of a group and each part of the rows, its batches of draws.
        self.parts: dict[tuple[str, str], dict[int, list[np.ndarray]]] = {}

    def of(self, draws: Draws) -> Results:
        """The variables of each group, of some draws of some rows, with the draws in front."""
        latents = self.joint.latents(draws)
        predictive = self.joint.predictive(draws, given=latents)
        prior = self._prior(draws)
        observed = sites.observed_sites(draws.model)
        named = prior if len(prior) else predictive
        for name, site in named.nodes.items():  # in others replaced by those of the guide's sites
            self.event_dims[name] = site.get("infer", {}).get("event_dims", ())

        results: Results = {}
        for name, site in self._posterior(draws, predictive).items():
            group = "posterior_predictive" if name in observed else "posterior"
            results[group, name] = self._values(group, name, draws, site)
        for name, site in sites.reported_sites(prior).items():
            group = "prior_predictive" if name in observed else "prior"
            results[group, name] = self._values(group, name, draws, site)
        self._log_likelihood(draws, results)
        for name, site in observed.items():
            results["observed_data", name] = self._values("observed_data", name, draws, site)
        for name, value in (("log_p", draws.log_p), ("log_q", draws.log_q)):
            self.dims["sample_stats", name] = []
            results["sample_stats", name] = value.sum(1)
        return results

    def add(self, rows: slice, results: Results) -> None:
        """Adds the variables of some draws of some rows."""
        for key, value in results.items():
            batches = self.parts.setdefault(key, {}).setdefault(rows.start, [])
            if key[0] != "observed_data":
                batches.append(value.detach().cpu().numpy())
            elif not batches:  # the same for all draws
                batches.append(value[:1].detach().cpu().numpy())

    def _posterior(self, draws: Draws, predictive: poutine.Trace) -> dict[str, dict]:
        """The sites of a predictive trace, what is a function of data as it is of those given."""
        found = sites.reported_sites(predictive)
        if any(map(is_deterministic, found.values())):
            given = self.joint.conditioned(draws, predictive)
            found |= {n: given.nodes[n] for n, s in found.items() if is_deterministic(s)}
        return found

    def _prior(self, draws: Draws) -> poutine.Trace:
        """The model without data or guide; no sites where a prior cannot be sampled."""
        try:
            prior = self.joint.predictive(draws, given=None)
        except NotImplementedError:  # an improper prior
            return poutine.Trace()
        # Draws that a change of variables must still weigh are none of the prior.
        weighed = map(sites.has_density, sites.reparameterised_sites(prior).values())
        return poutine.Trace() if any(weighed) else prior

    def _log_likelihood(self, draws: Draws, results: Results) -> None:
        """Adds the log-likelihood of each row, whose enumerated sites are summed over."""
        pseudo = pseudo_likelihoods(draws.model).keys()
        for part in likelihoods(draws):
            if pseudo & {*part.names}:
                self.caveats[part.names] = _not_of_densities(part.names)
                continue
            if part.value is None:
                self.caveats[part.names] = _not_of_rows(part)
                continue
            name = "+".join(
                part.names if len(part.names) < 4 else [part.names[0], "...", part.names[-1]]
            )
            site = {**draws.model.nodes[part.names[0]], "cond_indep_stack": part.frames}
            for group, value in (("log_likelihood", part.value), (MASK, part.mask)):
                if value is not None:
                    results[group, name] = self._values(group, name, draws, site, value, 0)
        if beside := tuple(factors_of_data(draws)):
            self.caveats[beside] = _not_of_factors(beside)

    def _values(
        self,
        group: str,
        name: str,
        draws: Draws,
        site: dict,
        value: Tensor | None = None,
        event_dim: int | None = None,
    ) -> Tensor:
        event_dim = _event_dim(site) if event_dim is None else event_dim
        value = site["value"] if value is None else value
        batch_dim = value.dim() - event_dim
        frames = {f.dim: f.name for f in site["cond_indep_stack"] if f.vectorized}
        plates = [frames.get(i - batch_dim, f"{name}_batch_{i}") for i in range(batch_dim)]
        given = self.names.get(name) or self.event_dims.get(name, ())
        events = [*given, *(f"{name}_dim_{i}" for i in range(len(given), event_dim))]
        if len(events) > event_dim and event_dim:
            raise ValueError(
                f"dims: site {name!r} has {event_dim} event dimension(s), got names {list(given)}."
            )
        if value is site["value"] and sites.is_discrete(site):
            self.discrete.add((group, name))
        self.dims[group, name] = plates + events[:event_dim]
        return self.joint.unstack(draws, site, value, event_dim)

    def arrays(self, chains: int) -> Groups:
        """The variables of each group, with all the draws."""
        groups: Groups = {}
        self._check_parts()
        for (group, name), parts in self.parts.items():
            dims = self.dims[group, name]
            arrays = [np.concatenate(batches) for batches in parts.values()]
            if group == "sample_stats" and self.joint.by_row:
                whole = np.sum(arrays, axis=0)
            elif "data" in dims and self.joint.tiled:
                whole = np.concatenate(arrays, axis=1 + dims.index("data"))
            else:
                whole = arrays[0]
            if (group, name) in self.discrete and np.array_equal(whole, whole.round()):
                whole = whole.astype(int)  # Pyro's counts are floats; ArviZ goes by the type
            if group == "observed_data":
                groups.setdefault(group, {})[name] = dims, whole[0]
            else:
                whole = whole.reshape(chains, -1, *whole.shape[1:])
                groups.setdefault(group, {})[name] = ["chain", "draw", *dims], whole
        for name, (_, mask) in groups.pop(MASK, {}).items():
            _leave_out(groups["log_likelihood"], name, np.asarray(mask.any((0, 1))))
        if not groups.get("log_likelihood", True):
            del groups["log_likelihood"]
        return groups

    def _check_parts(self) -> None:
        """Raises where some rows have sites that others have not."""
        whole = set().union(*self.parts.values()) if self.parts else set()
        for (_, name), parts in self.parts.items():
            if missing := sorted(whole - parts.keys()):
                raise ValueError(
                    f"model: {name!r} is of some rows alone, and those from row {missing[0]} on "
                    f"have other sites. Expected the same sites for all rows. Try a larger "
                    f"batch_size, so that all rows run at once, or a loop as long for all of them, "
                    f"and a mask."
                )


def _leave_out(arrays: Arrays, name: str, counts: np.ndarray) -> None:
    """Leaves out what is masked, which `az.loo` would count as data that fit perfectly."""
    if counts.all():
        return
    dims, whole = arrays.pop(name)
    if counts.any():
        entry = f"{name}_entry"
        arrays[name] = [*dims[:2], entry], whole[:, :, counts]
        arrays[entry] = [entry], np.flatnonzero(counts)


def _not_of_rows(part: Likelihood) -> str:
    names, enumerated = _some(part.names), _some(part.enumerated)
    return (
        f"log_likelihood: it does not hold the site(s) {names}. Expected rows that are independent "
        f"given the draws, got rows that depend on each other through {enumerated}, summed over. "
        f"Try log_evidence, or, where a row is a whole sequence, "
        f"`with data_plate(sequences):` around its states and its observations."
    )


def _not_of_densities(names: tuple[str, ...]) -> str:
    return (
        f"log_likelihood: it does not hold the site(s) {_some(names)}, pseudo-likelihoods, of each "
        f"entry given the others: az.loo would take them for the densities of rows. Try "
        f"log_evidence, which says what they are."
    )


def _not_of_factors(names: tuple[str, ...]) -> str:
    return (
        f"log_likelihood: the pyro.factor site(s) {_some(names)} are not in it, and lie in the "
        f"plates of the data, so that they may be a part of the likelihood of a row, as where data "
        f"are truncated or censored. Expected all of a likelihood at sites that observe, for "
        f"az.loo. Try a distribution whose log_prob holds that part, or log_evidence."
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join([*map(repr, names[:3]), *(["..."] if len(names) > 3 else [])])


def _event_dim(site: dict) -> int:
    """The event dimensions of a value."""
    event_dim: int = site["fn"].event_dim
    if is_deterministic(site):
        # By default all its dimensions are; those that are as long as the plates are theirs.
        frames = [f for f in site["cond_indep_stack"] if f.vectorized]
        shape, depth = site["value"].shape, max((-f.dim for f in frames), default=0)
        if len(shape) == event_dim >= depth and all(shape[depth + f.dim] == f.size for f in frames):
            return event_dim - depth
    return event_dim


def to_arviz(
    groups: Groups,
    arguments: dict[str, Any],
    coords: Mapping[str, Sequence[Any]],
    constant: str = "constant_data",
) -> Any:
    """Returns what the installed ArviZ reads, with the arguments that were not observed."""
    import arviz  # slow to import, and not needed to fit
    import xarray

    observed = groups.get("observed_data", {})
    named = [variable for arrays in groups.values() for variable in arrays.values()]
    rows = {x.shape[dims.index("data")] for dims, x in named if "data" in dims}
    given: Arrays = {}
    for name, x in arguments.items():
        if isinstance(x, Tensor) and x.dim() > 0:
            array = x.detach().cpu().numpy()
            if not any(np.array_equal(array, seen) for _, seen in observed.values()):
                first = "data" if len(x) in rows else f"{name}_dim_0"
                given[name] = [first, *(f"{name}_dim_{i}" for i in range(1, x.dim()))], array
    if given:
        groups[constant] = given
    datasets = {group: _dataset(arrays, coords) for group, arrays in groups.items()}
    if "InferenceData" in vars(arviz):  # ArviZ 0.x; 1.x warns of the name
        return arviz.InferenceData(**datasets)
    return xarray.DataTree.from_dict(datasets)


def _dataset(arrays: Arrays, coords: Mapping[str, Sequence[Any]]) -> "xarray.Dataset":
    import xarray

    sizes: dict[str, int] = {}
    for dims, array in arrays.values():
        sizes |= dict(zip(dims, array.shape, strict=True))
    for dim, size in sizes.items():
        if dim in coords and len(coords[dim]) != size:
            raise ValueError(f"coords: {dim!r} has {size} entries, got {len(coords[dim])} labels.")
    labels = {name: array for name, (dims, array) in arrays.items() if dims == [name]}
    labels = {dim: np.arange(size) for dim, size in sizes.items()} | labels
    return xarray.Dataset(
        {name: array for name, array in arrays.items() if name not in labels},
        coords=labels | {dim: coords[dim] for dim in sizes if dim in coords},
        attrs={
            "created_at": datetime.now(UTC).isoformat(),
            "inference_library": "pyro",
            "inference_library_version": pyro.__version__,
        },
    )
