"""Programs that fail within a trial: evaluated whole, or refused; no trial is passed by failing."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from ppl_models import data_plate, elbo, from_pyro_svi, iwae, log_evidence
from tests.support.looking import LONG, Looking
from tests.support.runs import quiet

ROWS = len(LONG)
PLACES = {round(x.item(), 12): n for n, x in enumerate(LONG)}


SCALES = {60: 2.0, 1200: 1.0, 300: 3.0, 20: 4.0}


class Own(Exception):
    """What a program raises by itself."""


def need(there, error=Own):
    if not there:
        raise error("of the program's own")


def mean_of(x):
    return x.mean().expand(len(x)), torch.ones_like(x)


def scaled(x, scale):
    return torch.zeros_like(x), torch.full_like(x, scale)


def only(takes, of_batch, error=Own):
    """A program that fails unless it takes the batch."""

    def of(x):
        need(takes(x), error)
        return of_batch(x)

    return of


def is_sorted(x):
    return bool((x.diff() >= 0).all())


def by_index(x):
    """The place of a row among all, by its number, which no other digits have."""
    places = x.new_tensor([PLACES[round(value.item(), 12)] for value in x])
    return 0.1 * (places - places.mean()), torch.ones_like(x)


def normed(x):
    """Fails for one row, of which there is no variance."""
    mean = functional.batch_norm(x[:, None], None, None, training=True)[:, 0]
    return mean, torch.ones_like(x)


FAILING = {
    "an assert": only(lambda x: len(x) == ROWS, mean_of, AssertionError),
    "a table of sizes": lambda x: scaled(x, SCALES[len(x)]),
    "a table, and few rows": lambda x: scaled(x, 2.0 if len(x) < 17 else SCALES[len(x)]),
    "enough rows": only(lambda x: len(x) >= 20, mean_of),
    "whole batches": only(lambda x: len(x) % 20 == 0, lambda x: scaled(x, len(x) ** 0.5)),
    "in their order": only(is_sorted, mean_of),
    "of one precision": only(lambda x: x.dtype == torch.float64 and len(x) % 20 == 0, mean_of),
    "two sizes": only(lambda x: len(x) in (20, ROWS), mean_of, IndexError),
    "by index": by_index,
    "normed": normed,
}


@pytest.mark.parametrize("batch_size", [20, 25, 40, 300, 4096])
@pytest.mark.parametrize("of_batch", FAILING.values(), ids=FAILING)
def test_programs_that_fail_for_some_rows_are_evaluated_whole(of_batch, batch_size):
    both = Looking(of_batch)
    found = log_evidence(both.model, both.guide, LONG, num_samples=20, batch_size=batch_size)
    torch.testing.assert_close(found.value, both.evidence_of(LONG))  # whatever is drawn
    draws = from_pyro_svi(both.model, both.guide, LONG, num_samples=5, batch_size=batch_size)
    weights = draws["sample_stats"]["log_p"] - draws["sample_stats"]["log_q"]
    expected = both.evidence_of(LONG).sum().expand(1, 5)
    torch.testing.assert_close(torch.tensor(weights.values), expected)


@pytest.mark.parametrize("name", ["enough rows", "whole batches", "two sizes", "a table of sizes"])
def test_minibatches_of_programs_that_fail_for_a_few_rows(name):
    """Batches of 20 rows, which all of them take."""
    both = Looking(FAILING[name])
    with pytest.raises(ValueError, match=r"site .* depends on the other rows.*batches of 20 of 60"):
        quiet(elbo(both.model, both.guide), LONG, steps=2, batch_size=20)


def test_minibatches_of_one_size_beside_other_rows():
    """The mean of a batch is the same in any order, and 20 rows are all that it takes."""
    both = Looking(only(lambda x: len(x) == 20, mean_of))
    objective = elbo(both.model, both.guide)
    loader = DataLoader(TensorDataset(LONG), batch_size=20)
    for data, options in ((LONG, {"batch_size": 20}), (loader, {})):
        with pytest.raises(ValueError, match=r"site 'x' of the model.*depends on the other rows"):
            quiet(objective, data, steps=2, **options)
    alike = Looking(only(lambda x: len(x) == 20, lambda x: scaled(x, 2.0)))
    run = quiet(elbo(alike.model, alike.guide), LONG, epochs=1, batch_size=20, lr=1e-9)
    assert run.history["loss"][0] == pytest.approx(-alike.evidence_of(LONG[:20]).mean(), abs=1)


@pytest.mark.parametrize("rest", [10, 17])
def test_the_batch_that_is_left_over(rest):
    """Of another scale than those before it, in a program that takes no others."""
    rows, both = 40 + rest, Looking(lambda x: scaled(x, {20: 1.0, rest: 3.0}[len(x)]))
    with pytest.raises(ValueError, match=r"on how many there are.*batches of 20 of 5"):
        quiet(elbo(both.model, both.guide), LONG[:rows], steps=2, batch_size=20)


@pytest.mark.parametrize("limit", [20, 40])
def test_a_loader_of_programs_that_branch_on_how_many_there_are(limit):
    both = Looking(lambda x: scaled(x, 3.0 if len(x) > limit else 1.0))
    loader = DataLoader(TensorDataset(LONG), batch_size=20)
    with pytest.raises(ValueError, match=r"site .* on how many there are"):
        quiet(elbo(both.model, both.guide), loader, steps=2)


def test_a_program_that_cannot_be_tried_is_refused():
    both = Looking(only(lambda x: is_sorted(x) and len(x) == 20, mean_of))
    loader = DataLoader(TensorDataset(LONG), batch_size=20)  # in their order
    with pytest.raises(ValueError, match=r"batches of 20 rows: .*another order.*Own.*Try") as seen:
        quiet(elbo(both.model, both.guide), loader, steps=2)
    assert isinstance(seen.value.__cause__, Own)


@pytest.mark.parametrize("name", ["enough rows", "whole batches", "two sizes", "normed"])
def test_iwae_of_programs_that_fail_for_a_few_rows(name):
    """20 rows, three times: 60."""
    both = Looking(FAILING[name])
    with pytest.raises(ValueError, match=r"iwae: site .* depends on the other rows"):
        quiet(iwae(both.model, both.guide, num_particles=3), LONG[::3], steps=2)


@pytest.mark.parametrize("limit", [20, 30, 59])
def test_draws_of_iwae_that_are_more_rows_than_the_batch(limit):
    both = Looking(lambda x: scaled(x, 3.0 if len(x) > limit else 1.0))
    with pytest.raises(ValueError, match=r"iwae: site .*on how many there are"):
        iwae(both.model, both.guide, num_particles=3).loss(LONG[::3])


@pytest.mark.parametrize(("limit", "batch_size"), [(45, 40), (45, 20), (20, 25), (59, 7)])
def test_the_whole_is_what_rows_are_among_all_of_them(limit, batch_size):
    """Rows are run in batches smaller than the limit, beyond which the whole is."""
    both = Looking(lambda x: scaled(x, 3.0 if len(x) > limit else 1.0))
    found = log_evidence(both.model, both.guide, LONG, num_samples=5, batch_size=batch_size)
    torch.testing.assert_close(found.value, both.evidence_of(LONG))


def test_latents_of_others_among_many_rows():
    """Rows see the latent before theirs, in batches of more than 20: one evidence, of them all."""

    def model(x, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            mean = z + 0.5 * z.roll(1) if len(x) > 20 else z
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    x = LONG[:24]
    matrix = torch.eye(24).double() + 0.5 * torch.eye(24).double().roll(1, 0)
    covariance = matrix @ matrix.T + torch.eye(24).double()
    exact = dist.MultivariateNormal(torch.zeros(24).double(), covariance).log_prob(x)
    for batch_size in (10, 4096):
        found = log_evidence(model, guide, x, num_samples=20_000, batch_size=batch_size, seed=0)
        assert found.value.shape == (1,)
        assert found.value.item() < exact + 0.1
        assert found.value.item() == pytest.approx(exact.item(), abs=2)


@pytest.mark.parametrize("odd", [20, 15, 10])
def test_what_is_left_over_is_tried_too(odd):
    """Batches of 25, 25 and 10 rows; a last one of 20, 15 or 10 draws of rows, of another scale."""
    both = Looking(lambda x: scaled(x, 3.0 if len(x) == odd else 1.0))
    x = LONG[:50] if odd == 15 else LONG
    for batch_size, samples in ((25, 5), (40, 5), (35, 3)):
        found = log_evidence(both.model, both.guide, x, num_samples=samples, batch_size=batch_size)
        torch.testing.assert_close(found.value, both.evidence_of(x))


@pytest.mark.parametrize(
    "call",
    [
        lambda both: log_evidence(both.model, both.guide, LONG),
        lambda both: from_pyro_svi(both.model, both.guide, LONG),
        lambda both: quiet(elbo(both.model, both.guide), LONG, steps=2, batch_size=20),
        lambda both: quiet(iwae(both.model, both.guide, 3), LONG, steps=2, batch_size=20),
        lambda both: quiet(elbo(both.model, both.guide), LONG, steps=2),
    ],
)
@pytest.mark.parametrize("kind", [Own, KeyError, ValueError, RuntimeError, AssertionError])
def test_an_error_of_the_program_comes_up_as_itself(call, kind):
    both = Looking(only(lambda _: False, mean_of, kind))
    with pytest.raises(kind, match="of the program's own") as seen:
        call(both)
    assert seen.traceback[-1].name == "need"
    assert seen.value.__cause__ is None


def steps(scale_beside):
    """A state for each step as far as the longest row of a batch goes, of no row beyond its own."""

    def model(x, length, size=None):
        with data_plate(x, size):
            scale = torch.ones(len(x), dtype=x.dtype)
            for t in range(int(length.max())):
                own = t < length if not scale_beside else torch.ones_like(length, dtype=torch.bool)
                with poutine.mask(mask=own):
                    pyro.sample(f"x_{t}", dist.Normal(0.0, scale), obs=x[:, t])

    return model


def test_sites_that_other_rows_bring_along():
    """Of no length of its own, a row has the more sites the longer the longest beside it is."""
    length, x = torch.tensor([1, 1, 2, 2, 3, 4]), torch.randn(6, 4).double()
    each = dist.Normal(0.0, 1.0).log_prob(x)
    exact = torch.where(torch.arange(4) < length[:, None], each, 0.0).sum(1)
    for batch_size in (2, 6):
        found = log_evidence(steps(False), None, x, length, batch_size=batch_size).value
        torch.testing.assert_close(found, exact)
        found = log_evidence(steps(True), None, x, length, batch_size=batch_size).value
        torch.testing.assert_close(found, each.sum(1))
    with pytest.raises(
        ValueError, match=r"site 'x_.' of the model: the log-density of a row depends"
    ):
        quiet(elbo(steps(True)), (x, length), steps=1, batch_size=2)


def test_a_mask_of_latents_in_a_program_that_takes_no_draws_of_its_prior():
    def model(x, size=None):
        with data_plate(x, size):
            near = pyro.sample("near", dist.Normal(torch.zeros_like(x), 1e4))
            assert near.abs().max() < 100
            with poutine.mask(mask=near > 0):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(torch.where(near > 0, z, 0.0), 1.0), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("near", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(ValueError, match="the mask of its latent site 'z' depends on latents"):
        log_evidence(model, guide, LONG)
