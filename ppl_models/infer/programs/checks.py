"""What a first run of a model and a guide must show: checks that come before any work is lost."""

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import TraceEnum_ELBO, TraceTMC_ELBO
from pyro.infer.elbo import ELBO
from torch import Tensor
from torch.distributions import constraints

from ppl_models.infer.programs.sites import (
    enumerated_sites,
    has_density,
    in_data_plate,
    is_derived,
    is_masked,
    kind,
    latent_sites,
    marked_sites,
    observed_sites,
    random_sites,
    reparameterised_sites,
)
from ppl_models.user_line import call_of

SHOWN = 6  # sites that a message names
TABLES = "\nTrace Shapes:"
# Errors whose text is for readers; that of a KeyError is a key, and classes of a user's are theirs.
TOLD = (
    *(RuntimeError, NotImplementedError, ValueError, TypeError, IndexError, AttributeError),
    *(NameError, UnboundLocalError, AssertionError, ZeroDivisionError, OverflowError),
)
OF_INDICES = (
    ". Expected integers from 0 to one less than there are entries, as indices. Try x.long() of "
    "whole numbers, the data in the order of the program's arguments, or an entry for each group "
    "(a new one has none)."
)
MISMATCH = re.compile(
    r"Shape mismatch inside plate\('(.*)'\) at site (\S+) dim (-?\d+), (\d+) vs (\d+)"
)


def check_sites(model: poutine.Trace, guide: poutine.Trace, estimator: ELBO | None = None) -> None:
    """Raises unless the guide samples the latents of the model that are not summed out."""
    if observed := sorted(observed_sites(guide)):
        raise ValueError(
            f"guide: its site(s) {_names(observed)} are observed, and would count against those of "
            f"the model. Try a guide of latents alone; for one that runs the model inside of "
            f"another (AutoNormalMessenger in an AutoGuideList), AutoNormal."
        )
    by_draws = isinstance(estimator, TraceTMC_ELBO)  # it weighs draws of what is marked
    summed_out = marked_sites(model) if by_draws else enumerated_sites(model)
    wanted = set(latent_sites(model)) - summed_out
    given = {
        name
        for name, site in latent_sites(guide).items()
        if not site["infer"].get("is_auxiliary") or name in wanted
    }
    missing = sorted(wanted - given)
    if other := [name for name in missing if name in marked_sites(model)]:
        infer = latent_sites(model)[other[0]]["infer"]
        mark = {key: infer[key] for key in ("enumerate", "num_samples") if infer.get(key)}
        raise ValueError(
            f"model: its site(s) {_names(other)} are marked for an enumeration that sums over "
            f"nothing in a model, infer={mark}, and would be drawn from the prior. Expected "
            f"infer={{'enumerate': 'parallel'}}, or config_enumerate(model) with its defaults: "
            f"try these, in a program without Python's `if` on the value, or the site in the guide."
        )
    if unseen := [name for name in missing if _is_left_out(name, model)]:
        x = unseen[0].removesuffix("_unobserved")
        raise ValueError(
            f"guide: what obs_mask leaves out of the site(s) {_names([x])} is the latent "
            f"{unseen[0]!r} of the model, and the guide has {_names(sorted(given)) or 'none'}. "
            f"Expected it in the guide, as obs_mask hands no infer= on to it. Try "
            f"pyro.sample({unseen[0]!r}, ...) in the guide, config_enumerate(model) where it is "
            f"discrete, or `with poutine.mask(mask=mask): pyro.sample({x!r}, ..., obs=...)`, which "
            f"leaves it out."
        )
    if missing:
        raise ValueError(
            f"guide: the model's latent site(s) {_names(missing)} are neither in the guide nor "
            f"enumerated; the guide has {_names(sorted(given)) or 'none'}. Try "
            f"pyro.sample({missing[0]!r}, ...) in the guide, or, for a discrete site, "
            f"infer={{'enumerate': 'parallel'}} in the model. If {missing[0]!r} is what is to be "
            f"predicted, try predict(model, guide, *new)."
        )
    if extra := sorted(given - set(latent_sites(model))):
        observed = [name for name in extra if name in observed_sites(model)]
        raise ValueError(
            f"guide: its site(s) {_names(extra)} are not latent in the model, which has "
            f"{_names(sorted(wanted)) or 'none'}."
            + (f" The model observes {_names(observed)}." if observed else "")
            + f" Try the model's names, or pyro.sample({extra[0]!r}, ...) in the model, too, after "
            f"the other latents and given these, as its reverse model."
        )


def check_observed(model: poutine.Trace) -> None:
    """Raises where a model has no observed site: its evidence would be that of nothing."""
    check_program(model)
    if not any(site["is_observed"] and not is_derived(site) for site in random_sites(model)):
        drawn = sorted(latent_sites(model))
        raise ValueError(
            f"model: it observes nothing, so that there is no evidence. It draws "
            f"{_names(drawn) or 'nothing'}. Try pyro.sample('x', ..., obs=x) where one of these is "
            f"data, in a program model(x=None, size=None)."
        )


def check_program(model: poutine.Trace) -> None:
    """Raises where a model has no random site at all: there is no posterior, and nothing else."""
    if not random_sites(model):
        raise ValueError(
            "model: it has no pyro.sample, so that there is neither a posterior nor a likelihood. "
            "Expected a Pyro program, got a function without chance, such as a network. Of an "
            "AutoEncoder, try model.encode(x), the codes of rows, or a VAE, which has a posterior; "
            "of a network, a model that has it inside, such as Classifier or MaskedWords."
        )


def check_not_enumerated(model: poutine.Trace, estimator: ELBO) -> None:
    """Raises where an estimator would silently sample sites marked for enumeration."""
    missing = sorted(enumerated_sites(model))
    if missing and not isinstance(estimator, TraceEnum_ELBO):
        raise ValueError(
            f"estimator: {type(estimator).__name__} samples the site(s) {_names(missing)} that "
            f"are marked for enumeration. Try estimator=None, or TraceEnum_ELBO()."
        )


def check_mean_field(model: poutine.Trace, guide: poutine.Trace) -> None:
    """Raises where `TraceMeanField_ELBO` would leave out a change of variables.

    Its divergence of a `Delta` from the model takes the value, and not the log-density.
    """
    for name, site in latent_sites(guide).items():
        if name in model.nodes and kind(site["fn"]) == "Delta" and has_density(site):
            raise ValueError(
                f"estimator: TraceMeanField_ELBO leaves out the density of the guide's site "
                f"{name!r}, a Delta whose log-density is that of a change of variables. Try "
                f"estimator=None, or Trace_ELBO()."
            )


def check_support(
    model: poutine.Trace, batch: tuple[Tensor, ...], data: tuple[Tensor, ...]
) -> None:
    """Raises where data lie outside the support of the site that observes them.

    A site that observes a tensor of the batch is checked on all of its rows.
    """
    _check_own_variable(model, batch)
    for name, site in observed_sites(model).items():
        value = site["value"]
        if not isinstance(value, Tensor):
            continue
        every = next((all_ for x, all_ in zip(batch, data, strict=True) if x is value), value)
        every = torch.atleast_1d(every)  # of a loop over rows: one number
        inside = _inside(site["fn"], every)
        if inside is None:  # the support may be another for each row of the batch
            every = torch.atleast_1d(value)
            inside = _inside(site["fn"], every)
        if inside is None or inside.all():
            if inside is not None:
                _check_edge(name, site, every)
            continue
        outside = every[~inside].flatten()  # elements, or rows where the support is one of rows
        rows = (~inside).flatten(1).any(1) if inside.ndim > 1 else ~inside
        numbers = outside if inside.shape == every.shape else _outside(site["fn"], outside)
        raise ValueError(
            f"site {name!r}: {int(rows.sum())} of {len(every)} rows lie outside the support of its "
            f"{kind(site['fn'])} ({_support(site['fn'])}), such as {numbers[0].item():g}. "
            + (
                "Grey levels are no outcomes of a Bernoulli: try binarize(x), or another "
                "likelihood, such as Normal() or Categorical(levels)."
                if _support(site["fn"]) is constraints.boolean
                else "Try other data, or another likelihood."
            )
        )


def _check_edge(name: str, site: dict, every: Tensor) -> None:
    """Raises where data lie on an edge of a support at which the density is zero or infinite.

    It is looked at where the distribution of the first batch puts it there, so that an edge with a
    density, as that of an `Exponential`, is let through.
    """
    fn, value = site["fn"], site["value"]
    support = _support(fn)
    if support.is_discrete or is_masked(site) or every.dtype == torch.bool:
        return
    edges = _edges(support)
    rows = torch.zeros(len(every), dtype=torch.bool, device=every.device)
    for edge in edges:
        with suppress(RuntimeError):  # an edge of its own for each row of another batch
            rows |= (every == edge).reshape(len(every), -1).any(1)
    if not rows.any():
        return
    first = every[int(rows.nonzero()[0])]
    density = fn.log_prob(first.expand_as(value) if value.dim() else first)
    if density.isfinite().all() or not torch.isfinite(fn.log_prob(value)).any():
        return
    numbers = [x for x in first.flatten().tolist() if any((x == e).any() for e in edges)]
    raise ValueError(
        f"site {name!r}: {int(rows.sum())} of {len(every)} rows lie on the edge of the support of "
        f"its {kind(fn)} ({support}), such as {numbers[0]:g}, where its log-density is "
        f"{density[~density.isfinite()].flatten()[0].item()}, whatever the learning rate. Expected "
        f"rows inside. Try x.clamp(eps, ...) where numbers were rounded, or a likelihood that "
        f"gives the edge a probability."
    )


def _edges(support: constraints.Constraint) -> list[Tensor]:
    """The ends of a support that belong to it; of a simplex, what an entry may fall to."""
    if support is constraints.simplex:
        return [torch.zeros(())]
    ends = (getattr(support, name, None) for name in ("lower_bound", "upper_bound"))
    return [torch.as_tensor(end) for end in ends if end is not None]


def _check_own_variable(model: poutine.Trace, batch: tuple[Tensor, ...]) -> None:
    """Raises where `poutine.reparam` gives data the density of another variable."""
    for name in reparameterised_sites(model):
        site = model.nodes[name]
        if is_masked(site) and any(site["value"] is x for x in batch):
            raise ValueError(
                f"site {name!r}: poutine.reparam changes its variable, and the log-density would "
                f"be that of another than the data, without the change of volume. Expected "
                f"latents, got data. Try a config without {name!r}."
            )


def _inside(fn: TorchDistributionMixin, values: Tensor) -> Tensor | None:
    """Which values the support holds, or None where that cannot be told."""
    try:
        return fn.support.check(values)
    except (NotImplementedError, RuntimeError, ValueError):
        return None


def _outside(fn: TorchDistributionMixin, values: Tensor) -> Tensor:
    """The numbers outside of the support of the elements of a row."""
    try:
        inside = _support(fn).check(values)
    except (NotImplementedError, RuntimeError, ValueError):
        return values
    return values[~inside] if inside.shape == values.shape else values


def _support(fn: TorchDistributionMixin) -> constraints.Constraint:
    """The support of an element of a row, where that of the row is one of independent elements."""
    support = fn.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def check_scaling(model: poutine.Trace, rows: int, size: int, takes_size: bool) -> None:
    """Raises where a minibatch cannot be scaled to the whole data."""
    shared = [name for name, site in latent_sites(model).items() if not in_data_plate(site)]
    if rows < size and shared and not takes_size:
        raise ValueError(
            f"model: the site(s) {_names(shared)} are shared by all rows, and the model has no "
            f"argument `size` that tells it that a batch of {rows} stands for {size}. Try "
            f"`def model(x=None, size=None)` with `data_plate(x, size)`, or batch_size=None."
        )


def of_rows(model: poutine.Trace) -> set[str]:
    """The latents of a model that belong to rows."""
    return {name for name, site in latent_sites(model).items() if in_data_plate(site)}


def check_plates(
    trace: poutine.Trace,
    program: str,
    rows: int,
    size: int,
    takes_size: bool,
    counted: Collection[str] = (),
) -> None:
    """Raises where the plates of a program do not scale a minibatch to the whole data.

    Arguments:
        trace: A trace of the program on a minibatch.
        program: How to call it.
        rows: The rows of the minibatch.
        size: The number of rows in all.
        takes_size: Whether the model has an argument `size`.
        counted: Latents that belong to rows, whether they are in the plate here or not.
    """
    if rows == size:
        return
    expected = size / rows if takes_size else 1.0
    for name in [*latent_sites(trace), *observed_sites(trace)]:
        site = trace.nodes[name]
        scale = 1.0
        for frame in site["cond_indep_stack"]:
            scale *= (frame.full_size or frame.size) / frame.size
        here = in_data_plate(site) or site["is_observed"]
        there = name in counted and not (kind(site["fn"]) == "Delta" and not has_density(site))
        if (here or there) and abs(scale / expected - 1) > 1e-6:
            raise ValueError(
                f"site {name!r} of the {program}: a batch of {rows} of {size} rows should count "
                f"{expected:g} times, and its plates count it {scale:g} times. Try `with "
                f"data_plate(x, size):` around it, in a program with an argument `size`, or "
                f"batch_size=None."
            )


def check_unscaled(*traces: poutine.Trace) -> None:
    """Raises where a density is scaled: by `poutine.scale`, or a plate that subsamples.

    A scale may be one of each row, so that it is looked at wherever numbers of rows are made.
    """
    for trace in traces:
        if all(_counts_once(s["scale"]) for s in trace.nodes.values() if s["type"] == "sample"):
            continue
        for site in random_sites(trace):
            scale = torch.as_tensor(site["scale"])
            odd = scale != 1.0
            if not odd.any():
                continue
            times = f"{scale[odd].flatten()[0].item():g}"
            some = f" in {int(odd.sum())} of {odd.numel()} places" if odd.numel() > 1 else ""
            raise ValueError(
                f"site {site['name']!r}: its log-density counts {times} times{some}, by "
                f"poutine.scale or a plate that draws some of the rows, and evidences, weights of "
                f"draws and log-likelihoods would be of no density of rows. Expected a program "
                f"over all rows, without a scale, which fit alone may have (as a weight of terms "
                f"of its loss). Try the program without it here, and rows that count n times as "
                f"n rows: x.repeat_interleave(n, 0)."
            )


def _counts_once(scale: float | Tensor) -> bool:
    """Whether a scale is none, without a look at a tensor."""
    return not isinstance(scale, Tensor) and scale == 1


@contextmanager
def noting_batch(batch: tuple[Tensor, ...]) -> Iterator[None]:
    """Says in an error from inside a program where in it that is, and what it was called with."""
    try:
        yield
    except Exception as error:
        _explain(error)
        tensors = [x for x in batch if isinstance(x, Tensor)]
        shapes = ", ".join(f"{tuple(x.shape)} {x.dtype} on {x.device}" for x in tensors)
        if tensors:
            error.add_note(f"This came from the program, called with a batch of {shapes}.")
        if isinstance(error, RuntimeError) and ("dtype" in str(error) or "Double" in str(error)):
            error.add_note("Try x.float(), or model.double() and guide.double().")
        raise


def _explain(error: Exception) -> None:
    """Says what a plate expected, or where in the program an error is, which keeps its type.

    Pyro raises errors anew, with tables of shapes so far, which are taken off. What has no text, or
    one that is read by others, gets a note.
    """
    first: BaseException = error
    while TABLES in str(first) and first.__cause__ is not None:
        first = first.__cause__
    place = call_of(first.__traceback__)
    has_text = bool(error.args) and isinstance(error.args[0], str)
    text = error.args[0] if has_text else ""
    if isinstance(error, (RuntimeError, ValueError)):
        text = text.partition(TABLES)[0].rstrip()
    if found := MISMATCH.match(text):
        text = _of_plate(*found.groups())
    elif place and text and type(error) in TOLD and not text.startswith(place):
        text = f"{place}: {text}{OF_INDICES if isinstance(error, IndexError) else ''}"
    elif place and not text.startswith(place):
        error.add_note(f"It came up at {place}.")
    if has_text:
        error.args = (text, *error.args[1:])
    if first is not error:  # the same, with those tables
        error.__cause__, error.__suppress_context__ = first.__cause__, True


def _of_plate(plate: str, site: str, dim: str, size: str, got: str) -> str:
    return (
        f"site {site!r}: the plate {plate!r} holds {size} entries along dimension {dim} of the "
        f"batch shape, and its distribution has {got} there. Expected {size} or 1, with what "
        f"belongs to one entry in the event. Try dist.<...>(...).to_event(1) if {got} are the "
        f"features of a row, parameters of this batch if they are rows, or dim=-2 in the plate "
        f"that is the outer one of two."
    )


def _is_left_out(name: str, model: poutine.Trace) -> bool:
    """Whether a site is what Pyro makes of the entries of a site that `obs_mask` leaves out."""
    base = name.removesuffix("_unobserved")
    return base != name and f"{base}_observed" in observed_sites(model)


def _names(names: list[str]) -> str:
    """The first of many."""
    shown = names if len(names) <= SHOWN else names[:SHOWN]
    listed = ", ".join(repr(name) for name in shown)
    return listed if len(shown) == len(names) else f"{listed} and {len(names) - SHOWN} others"
