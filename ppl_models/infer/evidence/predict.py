r"""Rows at new inputs, drawn from the posterior predictive.

.. math::
    p(y' \mid x', x, y) = \int p(y' \mid x', \theta) \, p(\theta \mid x, y) \, d\theta

where :math:`\theta` are the latents that all rows share. Latents of a row belong to it: those of
new rows are drawn from the model, given the others, where nothing of these rows was observed, and
otherwise inferred anew by an amortised guide.

References:
    | Bayesian Data Analysis, chapter 1.3 (Gelman et al., 2013)
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import ImproperUniform
from pyro.infer.autoguide import AutoGuide
from pyro.infer.autoguide.effect import AutoMessenger
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from ppl_models.checks import allows_missing, check_count, check_devices, check_tensors
from ppl_models.infer.compiled.side_by_side import Results
from ppl_models.infer.evidence.arviz import BATCH, Groups, Names, Variables, to_arviz
from ppl_models.infer.evidence.joint import Joint, sampling
from ppl_models.infer.evidence.mcmc import replayed
from ppl_models.infer.evidence.weights import Draws
from ppl_models.infer.programs import checks, sites
from ppl_models.infer.programs.own import own_parameters
from ppl_models.infer.programs.program import Program, modules_of_programs, no_latents
from ppl_models.infer.programs.pyro_internals import plate_frames
from ppl_models.infer.programs.rows import Rows, UnknownRowsError
from ppl_models.infer.programs.tables import as_rows, no_rows
from ppl_models.infer.trials.same import check_same
from ppl_models.scoped import kept_rng, modes, own_rng

DRAWS = 500  # of a guide
TRIES = 10  # other values of a site, to see whether something depends on it
POSTERIOR = "predict(model, from_pyro_svi(model, guide, *data), *new), data being the fitted rows"


def predict(
    model: Callable[..., Any],
    guide_or_posterior: Any,
    *new: Tensor,
    num_samples: int | None = None,
    size: int | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Names | None = None,
    batch_size: int = BATCH,
    seed: int | None = None,
) -> Any:
    r"""Returns rows at new inputs, drawn from the posterior predictive, as ArviZ reads them.

    Groups: `predictions` (what the model samples of the new rows, their latents included, and
    `pyro.deterministic` sites) and `predictions_constant_data` (the new inputs).

    A model that is given rows without what it predicts, as in `model(x, y=None)`, predicts that.
    One of rows, `model(x=None, size=None)`, draws `size` fresh rows. Rows that it observes, such as
    those of a VAE, have their latents inferred by the guide (enumerated ones from their posterior),
    and are drawn anew from these.

    Processes share the draws, as in `log_evidence`.

    Arguments:
        model: A Pyro program.
        guide_or_posterior: Its fitted guide; or what `from_pyro_svi` or `from_pyro_mcmc` returned;
            or None where all rows share no latents.
        new: The new inputs, as the model takes them; arrays and data frames become tensors.
        num_samples: The number of draws. Default: 500 of a guide, all of a posterior.
        size: The number of fresh rows, where there are no new inputs.
        coords: Labels along dimensions.
        dims: Names for the event dimensions of sites.
        batch_size: How many draws are made at once, as in `log_evidence`.
        seed: Seeds draws of their own; by default they come from torch's generator.

    Returns:
        `arviz.InferenceData` with ArviZ 0.x, `xarray.DataTree` with ArviZ 1.x.

    Raises:
        ValueError: If the posterior lacks latents of the model, or latents of new rows cannot be
            inferred.

    Example:
        >>> from guides import AmortizedNormal
        >>> from ppl_models import VAE
        >>> predictions = predict(VAE(5, 2), AmortizedNormal(5, 2), torch.ones(3, 5), num_samples=9)
        >>> predictions["predictions"]["x"].shape
        (1, 9, 3, 5)
    """
    check_count(num_samples=DRAWS if num_samples is None else num_samples, batch_size=batch_size)
    check_same(
        "predict",
        (model, guide_or_posterior),
        new,
        num_samples=num_samples,
        size=size,
        batch_size=batch_size,
        seed=seed,
    )
    program = Program(model, "model")
    program.is_evaluated = True
    new = as_rows(new, modules_of_programs(model, guide_or_posterior))
    count = _num_rows(new, size, program.argument_names)
    with _evaluating(program, new):
        rows = NewRows(program, new, count)
        shape = 1, num_samples or DRAWS
        if not callable(guide_or_posterior) and guide_or_posterior is not None:
            sampler, shape = _shared_of_posterior(guide_or_posterior, rows, num_samples)
        elif rows.inferred:
            sampler = _amortised(guide_or_posterior, rows)
        else:
            sampler = _shared_of_guide(guide_or_posterior, rows)
        run, guide, data, numbered = sampler
        with sampling(run, guide, data, seed, numbered, "predict") as joint:
            groups = _collect(joint, dims, shape, batch_size)
    arguments = program.name_arguments(new)
    return to_arviz(groups, arguments, coords or {}, constant="predictions_constant_data")


class NewRows:
    """A model at new inputs, and which of its latents are whose.

    Arguments:
        program: The model.
        data: The new inputs, or none.
        size: The number of rows.
    """

    def __init__(self, program: Program, data: tuple[Tensor, ...], size: int) -> None:
        self.program, self.data, self.size = program, data, size
        parameters = [p for module in program.modules().values() for p in module.parameters()]
        self.device = next(iter([*data, *parameters]), torch.zeros(())).device
        with kept_rng(self.device), program.noticing(), checks.noting_batch(data):
            trace = poutine.trace(_Improper()(program)).get_trace(*data, size=size)
        checks.check_support(trace, data, data)
        self.latents = sites.latent_sites(trace)
        self.observed = sites.observed_sites(trace)
        self.enumerated = sites.enumerated_sites(trace)
        # What is to be inferred from the new rows themselves.
        of_rows = {name for name, site in self.latents.items() if sites.in_data_plate(site)}
        self.of_rows = of_rows
        self.inferred = of_rows if self.observed else set()

    def model(self, given: set[str]) -> Callable[..., Any]:
        """The model as a program of the number of a draw, whose fresh sites are as if observed."""
        fresh = set() if self.observed else self.latents.keys() - given
        program, data, rows = self.program, self.data, self.size

        def model(*_: Tensor, size: int | None = None) -> Any:
            with _Fresh(fresh):
                return program(*data, size=rows)

        return model

    def check_given(
        self, given: Mapping[str, Tensor], where: str, data: Collection[str] | None = None
    ) -> None:
        """Raises unless these are the latents that all rows share, as the model has them.

        Arguments:
            given: The latents, as a draw.
            where: What they are from.
            data: The sites that were observed, where that is known.
        """
        fresh = [site for name, site in self.latents.items() if name not in given]
        for site in fresh:
            if site["name"] not in self.of_rows and not self._is_predicted(site["name"], data):
                raise ValueError(
                    f"{where}: it lacks the model's site {site['name']!r}, which all rows share. "
                    f"Expected draws of each such site, got those of {_names(given)}. Try "
                    f"{POSTERIOR}."
                )
        for name, value in given.items():
            site = self.latents[name]
            if value.shape != site["value"].shape:
                raise ValueError(
                    f"{where}: site {name!r} has shape {tuple(value.shape)}, and at the new inputs "
                    f"the model has {tuple(site['value'].shape)}. Try inputs with the groups that "
                    f"were fitted, or, for latents of rows, the plate data_plate(x, size)."
                )
            own = _plates(site)
            if own and fresh and all(_plates(other) <= own for other in fresh):
                raise ValueError(
                    f"{where}: site {name!r} belongs to the rows that were fitted, by their plate "
                    f"{sorted(own)}, and new rows have others. Try data_plate(x, size), whose "
                    f"latents are drawn anew."
                )

    def _is_predicted(self, name: str, data: Collection[str] | None) -> bool:
        """Whether a site outside of the rows' plate is of new data: nothing else depends on it."""
        if data is not None:
            return name in data
        if name in self.enumerated or self.of_rows or self.observed:
            return False
        if sites.kind(self.latents[name]["fn"]) == "ImproperUniform":
            return False
        with kept_rng(self.device):
            values = {n: site["value"] for n, site in self.latents.items()}
            before = self._densities(values)
            for _ in range(TRIES):
                after = self._densities(values | {name: self.latents[name]["fn"]()})
                if any(not torch.equal(before[n], after[n]) for n in before if n != name):
                    return False
        return True

    def _densities(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The log-density of each latent, where they have these values."""
        program = poutine.condition(self.program, data=values)
        trace = poutine.trace(program).get_trace(*self.data, size=self.size)
        trace.compute_log_prob()
        return {name: trace.nodes[name]["log_prob"] for name in values}


class _Fresh(Messenger):
    """Gives sites values of the model's own, as data have them."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, message: dict) -> None:
        if message["name"] in self.names and message["value"] is None:
            message.update(value=message["fn"](), is_observed=True)


class _Improper(Messenger):
    """Gives latents whose prior cannot be sampled some value, to see what else there is."""

    def _pyro_sample(self, message: dict) -> None:
        if isinstance(sites.base(message["fn"]), ImproperUniform) and message["value"] is None:
            transform = biject_to(message["fn"].support)
            shape = transform.inverse_shape(message["fn"].shape())
            message["value"] = transform(torch.zeros(shape))


def _plates(site: dict) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _num_rows(new: tuple[Tensor, ...], size: int | None, names: Sequence[str]) -> int:
    """The number of new rows."""
    for n, x in enumerate(new):
        if not isinstance(x, Tensor) or x.dim() == 0:
            number = "got a number. Try x.reshape(1)."
            found = number if isinstance(x, Tensor) else no_rows(x, names)
            raise TypeError(
                f"new[{n}]: expected tensors, arrays or data frames with one entry for each row, "
                f"{found}"
            )
    if new and size is not None:
        raise ValueError(
            f"size: expected none beside new inputs, which say how many rows there are, got "
            f"{size!r}. Try predict(model, guide, *new)."
        )
    if not new and size is None:
        raise ValueError(
            "new: expected new inputs, or a number of fresh rows, got neither. Try "
            "predict(model, guide, x), or predict(model, guide, size=10)."
        )
    check_count(size=len(new[0]) if size is None else size)
    return len(new[0]) if size is None else size


@contextmanager
def _evaluating(program: Program, new: tuple[Tensor, ...]) -> Iterator[None]:
    """A context without gradients and with the model in evaluation mode, its inputs checked."""
    modules = program.modules()
    if new:
        program.check_arguments(len(new))
        check_devices(modules, new)
        check_tensors(new, allows_missing(modules.values()))
    with torch.no_grad(), modes(modules.values(), training=False):
        yield


class Sampler(NamedTuple):
    """What `sampling` takes."""

    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    data: tuple[Tensor, ...]
    numbered: bool


def _sampler(rows: NewRows, given: set[str], guide: Callable[..., Any]) -> Sampler:
    number = torch.zeros(1, dtype=torch.long, device=rows.device)
    return Sampler(rows.model(given), guide, (number,), numbered=True)


def _amortised(guide: Any, rows: NewRows) -> Sampler:
    """The model and its guide at new rows, whose latents the guide infers."""
    if guide is not None:
        program = Program(guide, "guide", rows.program)
        program.is_evaluated = True
        program.check_arguments(len(rows.data))
        _check_amortised(program, rows)
        _check_no_rows_read(program, rows)
    return Sampler(rows.program.program, guide, rows.data, numbered=False)


def _check_amortised(guide: Program, rows: NewRows) -> None:
    """Raises where a guide has parameters for each row that it was fitted to."""
    parts = [] if guide.owner is None else [*guide.owner.modules()]
    inner: Any = guide.inner
    if isinstance(inner, AutoMessenger) and not [*inner.parameters(), *own_parameters(inner)]:
        raise ValueError(_not_fitted(inner))
    traces = [t for part in parts if (t := getattr(part, "prototype_trace", None)) is not None]
    held = {name for trace in traces for name in cast(poutine.Trace, trace).nodes}
    latents = rows.inferred & held or rows.inferred
    error = ValueError(
        f"guide: {type(inner).__name__} has the latents {_names(sorted(latents))} of "
        f"the rows that it was fitted to, and new rows have others. Try an amortised guide, such "
        f"as AmortizedNormal(num_features, num_latents)."
    )
    if any(isinstance(part, AutoGuide) and "data" in plate_frames(part) for part in parts):
        raise error
    try:
        with kept_rng(rows.device), Rows(None, rows.size, rows.size), guide.noticing():
            guide(*rows.data, size=rows.size)
    except UnknownRowsError as unknown:
        raise error from unknown


def _not_fitted(guide: Any) -> str:
    return f"guide: {type(guide).__name__} has not been fitted. Try fit(elbo(model, guide), data)."


def _shared_of_guide(guide: Any, rows: NewRows) -> Sampler:
    """The model and the latents of all rows, of a guide that need not know the new ones."""
    if guide is None or rows.latents.keys() == rows.of_rows:
        rows.check_given({}, "guide")
        return _sampler(rows, set(), no_latents)
    program = Program(guide, "guide", rows.program)
    program.is_evaluated = True
    inner: Any = program.inner
    if isinstance(inner, GuideMessenger):
        raise ValueError(
            f"guide: {type(inner).__name__} runs its model at the new inputs, and would guide what "
            f"is to be predicted. Expected the posterior of the fitted rows. Try {POSTERIOR}."
        )
    automatic = isinstance(inner, AutoGuide)
    if automatic and inner.prototype_trace is None:
        raise ValueError(_not_fitted(inner))
    data = () if automatic else rows.data

    def shared(*_: Tensor, size: int | None = None) -> None:
        with poutine.block(expose=names):
            program(*data, size=rows.size)

    names = [*rows.latents]
    try:
        with kept_rng(rows.device), program.noticing():
            trace = poutine.trace(shared).get_trace()
    except Exception as error:
        raise ValueError(
            f"guide: it cannot be called with the new inputs alone ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Try {POSTERIOR}."
        ) from error
    given = {n: s["value"] for n, s in sites.latent_sites(trace).items() if n not in rows.of_rows}
    rows.check_given(given, "guide")
    if not automatic and rows.data:
        _check_no_rows_read(program, rows)
    names = [*given]
    return _sampler(rows, set(given), shared)


def _check_no_rows_read(guide: Program, rows: NewRows) -> None:
    """Raises where latents that all rows share are those of other rows, if the guide is given such.

    With the same random numbers it must draw them as before from each row twice.
    """
    shared = rows.latents.keys() - rows.of_rows
    if not shared or isinstance(guide.inner, AutoGuide):
        return
    twice = tuple(x.repeat(2, *[1] * (x.dim() - 1)) for x in rows.data)
    draws = []
    for data, size in ((rows.data, rows.size), (twice, 2 * rows.size)):
        with own_rng("a trial", 0, rows.device):
            trace = poutine.trace(guide).get_trace(*data, size=size)
        draws.append({n: s["value"] for n, s in sites.latent_sites(trace).items() if n in shared})
    if not all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0]):
        raise ValueError(
            f"guide: its site(s) {_names(sorted(draws[0]))} depend on the rows that it is given, "
            f"which would be the new ones. Expected the posterior of the fitted rows. Try "
            f"{POSTERIOR}."
        )


def _shared_of_posterior(
    posterior: Any, rows: NewRows, num_samples: int | None
) -> tuple[Sampler, tuple[int, int]]:
    """The model, the draws of the latents of all rows, and how many chains and draws these are."""
    try:
        draws = posterior["posterior"]
    except (TypeError, KeyError, AttributeError) as error:
        raise TypeError(
            f"guide_or_posterior: expected a guide, or an ArviZ object with the group 'posterior', "
            f"got {type(posterior).__name__}. Try from_pyro_svi(model, guide, *data), or "
            f"from_pyro_mcmc(mcmc)."
        ) from error
    if hidden := sorted(rows.inferred - rows.enumerated):
        raise ValueError(
            f"posterior: the latents {_names(hidden)} of new rows are to be inferred from these, "
            f"which its draws do not tell. Try predict(model, guide, *new) with an amortised "
            f"guide, such as AmortizedNormal(num_features, num_latents), or without what was "
            f"observed."
        )
    shape = draws.sizes["chain"], draws.sizes["draw"]
    chosen: Any = slice(None)
    if num_samples is not None:
        total = shape[0] * shape[1]
        if num_samples > total:
            raise ValueError(
                f"num_samples: expected at most its {total} draws, got {num_samples}. Try "
                f"num_samples=None, which takes all of them."
            )
        chosen, shape = np.linspace(0, total - 1, num_samples).astype(int), (1, num_samples)
    samples = {}
    for name, site in rows.latents.items():
        if name in draws and name not in rows.of_rows:
            values = draws[name].values
            values = values.reshape(-1, *values.shape[2:])[chosen]
            samples[name] = torch.tensor(values).to(site["value"])
    rows.check_given({n: x[0] for n, x in samples.items()}, "posterior", _observed(posterior))
    each = {name: values.unsqueeze(0) for name, values in samples.items()}
    return _sampler(rows, set(samples), replayed(each) if each else no_latents), shape


def _observed(posterior: Any) -> set[str] | None:
    """The sites that were observed, if it holds them."""
    try:
        return set(posterior["observed_data"].data_vars)
    except (KeyError, AttributeError):
        return None


def _collect(joint: Joint, dims: Names | None, shape: tuple[int, int], batch_size: int) -> Groups:
    predictions = _Predictions(joint, dims or {})
    for rows, results in joint.evaluate(predictions.of, shape[0] * shape[1], batch_size):
        predictions.add(rows, results)
    return predictions.arrays(shape[0])


class _Predictions(Variables):
    """Gathers what a model draws beside the latents that all rows share."""

    def of(self, draws: Draws) -> Results:
        """The variables of the group `predictions`, of some draws, with the draws in front."""
        group = "predictions"
        trace = self.joint.predictive(draws, given=self.joint.latents(draws))
        results: Results = {}
        for name, site in sites.reported_sites(trace).items():
            if name not in self.joint.latent or sites.in_data_plate(site):
                self.event_dims[name] = site["infer"].get("event_dims", ())
                results[group, name] = self._values(group, name, draws, site)
        return results
