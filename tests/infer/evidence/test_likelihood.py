"""One number for each row, over which enumerated sites are summed: right, or left out."""

import itertools

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, config_enumerate
from pyro.infer.autoguide import AutoNormal

from ppl_models import data_plate, from_pyro_mcmc, from_pyro_svi, log_evidence

INITIAL = torch.tensor([0.6, 0.4])
MOVES = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
LOCS = torch.tensor([-1.0, 2.0])
ODD = torch.tensor(0.3).double()


def draw(model, guide, *data, **options):
    return from_pyro_svi(model, guide, *data, **{"num_samples": 30, "seed": 0} | options)


def names_of(data) -> list[str]:
    return list(data["log_likelihood"].data_vars) if "/log_likelihood" in paths(data) else []


def paths(data) -> set[str]:
    """The groups of an object of either generation of ArviZ."""
    names = data.children if hasattr(data, "children") else data.groups()
    return {f"/{name.strip('/')}" for name in names}


def close(got, expected, rtol=1e-5):
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected), rtol=rtol, atol=1e-5)


def of_path(x, locs=LOCS):
    """The forward algorithm, in the way that cannot be wrong: a sum over all paths."""
    total = torch.zeros(())
    for path in itertools.product(range(2), repeat=x.shape[-1]):
        p = INITIAL[path[0]].clone()
        for a, b in itertools.pairwise(path):
            p = p * MOVES[a, b]
        total = total + p * dist.Normal(locs[list(path)], 1.0).log_prob(x).sum(-1).exp()
    return total.log()


def chain(x, locs):
    z = None
    for t in pyro.markov(range(x.shape[-1])):
        probs = INITIAL if z is None else MOVES[z]
        z = pyro.sample(f"z_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", dist.Normal(locs[z], 1.0), obs=x[..., t])


def test_steps_of_one_sequence_have_no_likelihood_of_their_own():
    def model(x=None, size=None):
        chain(x, LOCS)

    x = torch.tensor([-1.2, 1.7, 2.2, -0.5])
    with pytest.warns(UserWarning, match="does not hold the site") as caught:
        data = draw(model, None, x)
    assert caught[0].filename == __file__
    assert "/log_likelihood" not in paths(data)
    assert "'z_0', 'z_1', 'z_2', ..." in str(caught[0].message)
    assert log_evidence(model, None, x).value.item() == pytest.approx(of_path(x).item(), rel=1e-5)


def test_a_sequence_is_one_row():
    def model(x=None, size=None):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with data_plate(x, size):
            chain(x, LOCS + shift)

    x = torch.tensor([[-1.2, 1.7, 2.2, -0.5], [2.0, 2.5, -1.0, -1.0], [0.0, 0.1, 0.5, 1.0]])
    data = draw(model, AutoNormal(poutine.block(model, expose=["shift"])), x)
    got = data["log_likelihood"]["x_0+...+x_3"]
    assert got.dims == ("chain", "draw", "data")
    shift = torch.from_numpy(data["posterior"]["shift"].values)[0]
    close(got[0], [[of_path(row, LOCS + s) for row in x] for s in shift])


def test_an_enumerated_site_outside_the_plate_ties_the_rows():
    @config_enumerate
    def model(x=None, size=None):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x)

    x = torch.randn(6)
    with pytest.warns(UserWarning, match="through 'k'"):
        data = draw(model, None, x)
    assert "/log_likelihood" not in paths(data)
    assert data["posterior"]["k"].shape == (1, 30)


def test_what_no_enumerated_site_ties_stays():
    @config_enumerate
    def model(x=None, size=None):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x[:, 0])
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=x[:, 1])

    x = torch.randn(6, 2)
    with pytest.warns(UserWarning, match="site\\(s\\) 'x'"):
        data = draw(model, None, x)
    assert names_of(data) == ["y"]
    close(data["log_likelihood"]["y"][0, 0], dist.Normal(0.0, 1.0).log_prob(x[:, 1]))


def test_two_sites_with_one_component_are_one_datum():
    """Conditional on drawn components, as they were before, they fit too well."""

    @config_enumerate
    def model(x=None, size=None):
        with data_plate(x, size):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            j = pyro.sample("j", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x[:, 0])
            pyro.sample("y", dist.Normal(-LOCS[k], 2.0), obs=x[:, 1])
            pyro.sample("w", dist.Normal(LOCS[j], 1.0), obs=x[:, 2])

    x = torch.randn(6, 3)
    data = draw(model, None, x)
    assert set(names_of(data)) == {"x+y", "w"}
    log_p = torch.tensor([0.3, 0.7]).log()
    log_p = log_p + dist.Normal(LOCS, 1.0).log_prob(x[:, :1])
    log_p = log_p + dist.Normal(-LOCS, 2.0).log_prob(x[:, 1:2])
    close(data["log_likelihood"]["x+y"][0, 7], log_p.logsumexp(1))
    w = dist.Normal(LOCS, 1.0).log_prob(x[:, 2:]).logsumexp(1) - np.log(2)
    close(data["log_likelihood"]["w"][0, 7], w)
    evidence = log_evidence(model, None, x).value
    close((log_p.logsumexp(1) + w), evidence)


def test_a_row_of_several_entries_with_one_component():
    """The plate of the features is summed over, as the component is the row's."""

    @config_enumerate
    def model(x=None, size=None):
        features = pyro.plate("features", 3, dim=-1)
        with pyro.plate("data", len(x), dim=-2):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            with features:
                pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x)

    x = torch.randn(5, 3)
    data = draw(model, None, x)
    got = data["log_likelihood"]["x"]
    assert got.dims == ("chain", "draw", "data")
    log_p = torch.tensor([0.3, 0.7]).log() + dist.Normal(LOCS, 1.0).log_prob(x[..., None]).sum(1)
    close(got[0, 3], log_p.logsumexp(1))


@pytest.mark.parametrize("reads", [False, True])
def test_latents_that_depend_on_an_enumerated_site(reads):
    """p(x | z) of drawn z: by enumeration of k, of which both are."""

    @config_enumerate
    def model(x=None, size=None):
        with data_plate(x, size):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            z = pyro.sample("z", dist.Normal(LOCS[k], 1.0))
            pyro.sample("x", dist.Normal(z + (LOCS[k] if reads else 0.0), 1.0), obs=x)

    def guide(x=None, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.randn(5)
    data = draw(model, guide, x)
    z = torch.from_numpy(data["posterior"]["z"].values)[0]
    of_k = torch.tensor([0.3, 0.7]).log() + dist.Normal(LOCS, 1.0).log_prob(z[..., None])
    mean = z[..., None] + (LOCS if reads else torch.zeros(2))
    both = of_k + dist.Normal(mean, 1.0).log_prob(x[:, None])
    close(data["log_likelihood"]["x"][0], both.logsumexp(-1) - of_k.logsumexp(-1))


def test_mcmc_of_a_mixture():
    @config_enumerate
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(LOCS[k] + loc, 1.0), obs=x[:, 0])
            pyro.sample("y", dist.Normal(LOCS[k] - loc, 1.0), obs=x[:, 1])

    x = torch.randn(5, 2)
    mcmc = MCMC(NUTS(model), 15, 15, disable_progbar=True)
    mcmc.run(x)
    data = from_pyro_mcmc(mcmc)
    loc = torch.from_numpy(data["posterior"]["loc"].values)[0, :, None, None]
    log_p = torch.tensor([0.3, 0.7]).log() + dist.Normal(LOCS + loc, 1.0).log_prob(x[:, :1])
    log_p = log_p + dist.Normal(LOCS - loc, 1.0).log_prob(x[:, 1:])
    close(data["log_likelihood"]["x+y"][0], log_p.logsumexp(-1))


MASK = torch.tensor([True, True, False, True, False, True])


def masked_by_handler(loc, x):
    with poutine.mask(mask=MASK):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def masked_by_distribution(loc, x):
    pyro.sample("x", dist.Normal(loc, 1.0).mask(MASK), obs=x)


def masked_inside_of_an_event(loc, x):
    mask = torch.stack([MASK, torch.zeros_like(MASK)], 1)
    both = torch.stack([x, x], 1)
    pyro.sample("x", dist.Normal(loc, 1.0).expand([len(x), 2]).mask(mask).to_event(1), obs=both)


@pytest.mark.parametrize(
    "observe", [masked_by_handler, masked_by_distribution, masked_inside_of_an_event]
)
def test_masked_rows_are_no_data(observe):
    """What they are makes no difference, and `az.loo` counts the others alone."""

    def model(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with data_plate(x, size):
            observe(loc, x)

    def guide(x=None, size=None):
        pyro.sample("loc", dist.Normal(0.4, 0.5))

    x = torch.tensor([0.3, -0.4, 50.0, 1.0, -70.0, 0.8])
    data = draw(model, guide, x, num_samples=200)
    loc = torch.from_numpy(data["posterior"]["loc"].values)
    close(data["log_likelihood"]["x"], dist.Normal(loc[..., None], 1.0).log_prob(x[MASK]))
    assert az.loo(data).n_data_points == 4
    assert data["log_likelihood"]["x_entry"].values.tolist() == [0, 1, 3, 5]
    assert data["observed_data"]["x"].shape[0] == 6


def test_masked_entries_of_series():
    lengths = torch.tensor([3, 1, 2])
    mask = torch.arange(3) < lengths[:, None]

    def model(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        rows, time = pyro.plate("data", len(x), dim=-2), pyro.plate("time", 3, dim=-1)
        with rows, time, poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = torch.randn(3, 3)
    data = draw(model, AutoNormal(model), x)
    loc = torch.from_numpy(data["posterior"]["loc"].values)
    got = data["log_likelihood"]["x"]
    assert got.dims == ("chain", "draw", "x_entry")
    close(got, dist.Normal(loc[..., None], 1.0).log_prob(x[mask]))
    assert got["x_entry"].values.tolist() == [0, 1, 2, 3, 6, 7]


def test_sites_that_are_masked_altogether_are_left_out():
    def model(x=None, size=None):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
            with poutine.mask(mask=False):
                pyro.sample("y", dist.Normal(loc, 1.0), obs=x)

    assert names_of(draw(model, AutoNormal(model), torch.randn(4))) == ["x"]


def truncated(x=None, size=None):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()).double(), 1.0))
    with data_plate(x, size):
        whole = dist.Normal(mean, 1.0)
        pyro.sample("x", whole, obs=x)
        pyro.factor("positive", -(1 - whole.cdf(torch.zeros(()).double())).log())


def hurdle(x=None, size=None):
    """Only those that are positive have a normaliser."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()).double(), 1.0))
    with data_plate(x, size):
        pyro.sample("any", dist.Bernoulli(torch.tensor(0.4).double()), obs=(x > 1).double())
        with poutine.mask(mask=x > 1):
            whole = dist.Poisson(mean.exp())
            pyro.sample("x", whole, obs=x.round())
            pyro.factor("positive", -(1 - (-mean.exp()).exp()).log())


def truncated_mixture(x=None, size=None):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()).double(), 1.0))
    with data_plate(x, size):
        k = pyro.sample("k", dist.Bernoulli(ODD), infer={"enumerate": "parallel"})
        whole = dist.Normal(mean + k, 1.0)
        pyro.sample("x", whole, obs=x)
        pyro.factor("positive", -(1 - whole.cdf(torch.zeros(()).double())).log())


@pytest.mark.parametrize("model", [truncated, hurdle, truncated_mixture])
def test_a_factor_beside_data_may_be_of_their_likelihood(model):
    def guide(x=None, size=None):
        pyro.sample("mean", dist.Normal(torch.tensor(0.5).double(), 0.7))

    x = torch.tensor([0.3, 1.2, 2.0, 0.7]).double()
    with pytest.warns(UserWarning, match="pyro.factor site.* 'positive' are not in it"):
        draw(model, guide, x)


def test_a_factor_that_says_what_is_possible_is_none_of_theirs():
    x, label = torch.tensor([0.3, -1.2, 2.0]), torch.tensor([0, -1, 1])

    def model(x, label, size=None):
        with data_plate(x, size):
            k = pyro.sample("k", dist.Categorical(INITIAL), infer={"enumerate": "parallel"})
            pyro.factor("known", torch.where((label >= 0) & (k != label), -torch.inf, 0.0))
            pyro.sample("x", dist.Normal(LOCS[k], 1.0), obs=x)

    of_each = dist.Normal(LOCS, 1.0).log_prob(x[:, None])
    unknown = (of_each + INITIAL.log()).logsumexp(1)
    given = of_each.gather(1, label.clamp(min=0)[:, None])[:, 0]
    data = draw(model, None, x, label)
    close(data["log_likelihood"]["x"].values[0, 0], torch.where(label < 0, unknown, given))
