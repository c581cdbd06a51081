"""SBC and TARP: they clear what is right, see the faults that are planted, and refuse the rest."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal
from scipy.signal import lfilter
from torch import nn

from benchmarks.truth.diagnostics import FAULTS, correlated, faulty, gap
from guides import AmortizedNormal, ExactPosterior
from ppl_models import VAE, FactorAnalysis, data_plate, elbo, fit, khat, nuts, sbc, tarp
from ppl_models.infer.diagnostics.calibration import refits
from ppl_models.infer.evidence.arviz import to_arviz
from ppl_models.likelihoods import Bernoulli

EXACT = "none: the exact posterior"
ONE = torch.ones((), dtype=torch.float64)


@pytest.fixture(scope="module")
def analysis():
    return correlated()


@pytest.mark.slow
def test_the_exact_posterior_is_calibrated(analysis):
    """In 95 of 100 seeds, or more, where 99 are expected: fewer are in one of two thousand runs."""
    guide = ExactPosterior(analysis)
    found = [sbc(analysis, guide, seed=seed).p_value for seed in range(100)]
    assert sum(p > 0.01 for p in found) >= 95


@pytest.mark.slow
def test_random_points_of_the_exact_posterior_are_covered(analysis):
    found = [tarp(analysis, None, seed=seed).p_value for seed in range(100)]
    assert sum(p > 0.01 for p in found) >= 95


@pytest.mark.parametrize("fault", [name for name in FAULTS if name != EXACT])
def test_each_fault_is_seen(analysis, fault):
    guide = faulty(analysis, FAULTS[fault])
    found = sbc(analysis, guide, seed=0)
    assert found.p_value < 1e-3
    assert "not calibrated" in str(found)
    assert tarp(analysis, guide, seed=0).p_value < 1e-3
    assert gap(analysis, guide, analysis(size=200)) > 0.1


def test_what_the_joint_density_sees_alone(analysis):
    """Each latent by itself is as the prior has it, or as the posterior."""
    for name in ("the prior", "a correlation of 0.9 ignored"):
        found = sbc(analysis, faulty(analysis, FAULTS[name]), seed=0)
        assert (found.p_values["z"] > 0.001).all()
        assert found.worst == "log_p"
        assert found.p_values["log_p"] < 1e-10


def test_points_that_do_not_depend_on_data_would_pass_the_prior(analysis, monkeypatch):
    from ppl_models.infer.diagnostics import tarp as file

    guide = faulty(analysis, FAULTS["the prior"])
    assert tarp(analysis, guide, seed=0).p_value < 1e-10
    monkeypatch.setattr(file, "_points", lambda latents, data, new: latents.flip(0))
    assert tarp(analysis, guide, seed=0).p_value > 0.01


def test_what_k_sees(analysis):
    x = analysis(size=200)
    k = {name: khat(analysis, faulty(analysis, f), x, seed=0).value for name, f in FAULTS.items()}
    assert k[EXACT].tolist() == [0.0] * 200
    assert k["half the scale"].median().item() == pytest.approx(0.72, abs=0.05)
    assert k["shifted by 3 sd"].median().item() == pytest.approx(1.0, abs=0.1)
    assert k["twice the scale"].median() < 0
    assert abs(gap(analysis, faulty(analysis, FAULTS[EXACT]), x)) < 1e-8


def test_the_line_says_what_is_wrong(analysis):
    said = {
        "half the scale": "draws too likely",
        "shifted by 2 sd": "draws too high",
        "a correlation of 0.9 ignored": "draws less likely than the truth",
    }
    for fault, expected in said.items():
        assert str(sbc(analysis, faulty(analysis, FAULTS[fault]), seed=0)).endswith(expected)


def test_ranks_have_a_seed_and_leave_others_alone(analysis):
    guide = ExactPosterior(analysis)
    before = torch.get_rng_state()
    one, same = (sbc(analysis, guide, num_simulations=50, num_draws=20, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    other = sbc(analysis, guide, num_simulations=50, num_draws=20)
    assert not torch.equal(torch.get_rng_state(), before)
    assert one.ranks["z"].shape == (50, 2)
    assert torch.equal(one.ranks["z"], same.ranks["z"])
    assert not torch.equal(one.ranks["z"], other.ranks["z"])
    fewer = sbc(analysis, guide, num_simulations=50, num_draws=20, batch_size=64, seed=1)
    assert fewer.ranks["z"].shape == (50, 2)


def test_a_variational_autoencoder():
    vae = VAE(num_features=6, num_latents=2, likelihood=Bernoulli())
    with torch.no_grad():  # so that data say something of latents
        vae.decoder[-1].weight.mul_(20)
    found = sbc(vae, AmortizedNormal(6, 2), num_simulations=300, num_draws=30, seed=0)
    assert found.p_value < 1e-3  # of a guide that was not trained
    assert found.ranks.keys() == {"z", "log_p"}


def mixed(x=None, size=None):
    """Half of all rows are moved: an enumerated latent beside one that a guide draws."""
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0 * ONE, 1.0))
        k = pyro.sample("k", dist.Bernoulli(ONE / 2), infer={"enumerate": "parallel"})
        return pyro.sample("x", dist.Normal(z + 4 * k, 1.0), obs=x)


def of_mixed(scale):
    def guide(x, size=None):
        log_odds = dist.Normal(4.0, 2**0.5).log_prob(x) - dist.Normal(0.0, 2**0.5).log_prob(x)
        p = log_odds.sigmoid()
        with data_plate(x, size):
            parts = dist.Categorical(torch.stack([1 - p, p], -1))
            means = torch.stack([x / 2, (x - 4) / 2], -1)
            both = dist.Normal(means, scale * 0.5**0.5)
            pyro.sample("z", dist.MixtureSameFamily(parts, both))

    return guide


@pytest.mark.parametrize(("scale", "right"), [(1.0, True), (1.5, False)])
def test_enumerated_latents_are_summed_over(scale, right):
    found = sbc(mixed, of_mixed(scale), seed=0)
    assert found.ranks.keys() == {"z", "log_p"}
    assert (found.p_value > 0.01) == right
    assert right or found.p_value < 1e-3


def labels(x=None, size=None):
    with data_plate(x, size):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3]).double()))
        return pyro.sample("x", dist.Normal(k.double(), 1.0), obs=x)


def of_labels(power):
    """The posterior, or one that is too sure of itself."""

    def guide(x, size=None):
        prior = torch.tensor([0.2, 0.5, 0.3]).double().log()
        logits = prior + dist.Normal(torch.arange(3).double(), 1.0).log_prob(x[:, None])
        with data_plate(x, size):
            pyro.sample("k", dist.Categorical(logits=power * logits))

    return guide


@pytest.mark.parametrize(("power", "right"), [(1.0, True), (4.0, False), (0.0, False)])
def test_discrete_latents_that_a_guide_draws(power, right):
    found = sbc(labels, of_labels(power), num_draws=40, seed=0)
    assert found.ranks["k"].shape == (1000,)
    assert (found.p_value > 0.01) == right
    assert right or found.p_value < 1e-3
    assert right == (tarp(labels, of_labels(power), num_draws=40, seed=0).p_value > 0.01)


def conditional(x=None, c=None, size=None):
    """A row has what it is given beside it, and a latent of two by two numbers."""
    with data_plate(c if x is None else x, size):
        z = pyro.sample("z", dist.Normal(torch.zeros(2, 2).double(), 1.0).to_event(2))
        mean = z + c[:, None, None]
        return pyro.sample("x", dist.Normal(mean, 1.0).to_event(2), obs=x)


@pytest.mark.parametrize(("looks", "right"), [(1.0, True), (0.5, False)])
def test_inputs_beside_data_that_come_before_them(looks, right):
    def guide(x, c, size=None):
        with data_plate(x, size):
            mean = (x - looks * c[:, None, None]) / 2
            pyro.sample("z", dist.Normal(mean, 0.5**0.5).to_event(2))

    c = 3 * torch.randn(7).double()
    found = sbc(conditional, guide, None, c, num_draws=30, seed=0)
    assert found.ranks["z"].shape == (1000, 2, 2)
    assert (found.p_value > 0.01) == right


def silent(x=None, size=None):
    """It returns nothing: its argument has the name of its site."""
    conditional(x, torch.zeros(5 if x is None else len(x)).double(), size)


def both(x=None, y=None, size=None):
    """Two arguments are data."""
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0 * ONE, 1.0))
        x = pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        return x, pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def parts(x=None, size=None):
    """Of one argument, a part for each site."""
    one, other = (None, None) if x is None else x.unbind(-1)
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0 * ONE, 1.0))
        found = [pyro.sample(n, dist.Normal(z, 1.0), obs=o) for n, o in (("a", one), ("b", other))]
        return torch.stack(found, -1)


def of_sums(*data, size=None):
    total = sum(x if x.dim() == 1 else x.sum(-1) for x in data)
    with data_plate(data[0], size):
        pyro.sample("z", dist.Normal(total / 3, 3**-0.5))


def of_silent(x, size=None):
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(2))


@pytest.mark.parametrize(
    ("model", "guide", "size"),
    [(silent, of_silent, 5), (both, of_sums, None), (parts, of_sums, None)],
)
def test_where_data_go(model, guide, size):
    args = {"num_simulations": 200, "num_draws": 30, "seed": 0}
    assert sbc(model, guide, size=size, **args).p_value > 0.01


def shared(x=None, size=None):
    m = pyro.sample("m", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x)


def of_shared(scale=1.0):
    def guide(x, size=None):
        sd = scale * (1 + len(x)) ** -0.5
        pyro.sample("m", dist.Normal(x.sum(0) / (1 + len(x)), sd).to_event(1))

    return guide


@pytest.mark.parametrize(("scale", "right"), [(1.0, True), (1.5, False)])
def test_latents_of_all_rows_and_a_guide_of_any_data_set(scale, right):
    found = sbc(shared, of_shared(scale), size=5, num_simulations=500, num_draws=40, seed=0)
    assert found.ranks["m"].shape == (500, 2)
    assert (found.p_value > 0.01) == right
    covered = tarp(shared, of_shared(scale), size=5, num_simulations=500, num_draws=40, seed=0)
    assert (covered.p_value > 0.01) == right


def regression(x, y=None, size=None):
    slope = pyro.sample("slope", dist.Normal(0 * ONE, 1.0))
    with data_plate(x, size):
        return pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def slope_of(x, y):
    """Its mean and its scale, given the data."""
    precision = 1 + x.square().sum()
    return (x * y).sum() / precision, precision**-0.5


def exact_refit(model, x, y):
    mean, scale = slope_of(x, y)
    return lambda x, y, size=None: pyro.sample("slope", dist.Normal(mean, scale))


X = torch.linspace(-1.0, 1.0, 7, dtype=torch.float64)


def test_a_guide_that_is_made_for_each_data_set():
    args = {"num_simulations": 100, "num_draws": 20, "num_jobs": 1, "seed": 0}
    found = sbc(regression, None, X, refit=exact_refit, **args)
    assert found.p_value > 0.01

    def blind(model, x, y):
        return lambda x, y, size=None: pyro.sample("slope", dist.Normal(0 * ONE, 1.0))

    found = sbc(regression, None, X, refit=blind, **args)
    assert found.worst == "log_p"
    assert found.p_value < 1e-3
    assert tarp(regression, None, X, refit=blind, **args).p_value < 1e-3


class Rows(nn.Module):
    """Latents of rows, and a parameter of the model that must not be trained."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0 * ONE, 1.0))
            return pyro.sample("x", dist.Normal(z, self.scale), obs=x)


def fitted(model, x):
    pyro.param("theirs", torch.zeros(1))
    with torch.no_grad():
        pyro.param("mine", torch.zeros(1)).add_(1)
    guide = AutoNormal(model, init_scale=0.5)
    fit(elbo(model, guide), x, steps=5, lr=0.1, progress=False)
    return guide


def test_fits_leave_the_model_and_pyros_store_alone():
    model, args = Rows(), {"num_simulations": 20, "num_draws": 10, "num_jobs": 1, "seed": 0}
    pyro.param("mine", torch.ones(1))
    before = torch.get_rng_state()
    found = sbc(model, None, size=3, refit=fitted, **args)
    assert found.ranks["z"].shape == (20, 3)
    assert (model.scale.item(), model.scale.requires_grad) == (1.0, True)
    assert [*pyro.get_param_store().keys()] == ["mine"]
    assert pyro.param("mine").item() == 1.0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_ranks_do_not_depend_on_the_number_of_processes():
    args = {"num_simulations": 20, "num_draws": 10, "seed": 0}
    one = sbc(Rows(), None, size=3, refit=fitted, num_jobs=1, **args)
    two = sbc(Rows(), None, size=3, refit=fitted, num_jobs=2, **args)
    assert torch.equal(one.ranks["z"], two.ranks["z"])
    assert torch.equal(one.ranks["log_p"], two.ranks["log_p"])


def chain_refit(model, x, y):
    """Draws of the posterior each of which depends on the one before, as ArviZ has them."""
    (mean, scale), noise = slope_of(x, y), np.random.standard_normal((1, 1100))
    draws = lfilter([(1 - 0.95**2) ** 0.5], [1.0, -0.95], noise)[:, 100:]
    values = mean.item() + scale.item() * draws
    return to_arviz({"posterior": {"slope": (["chain", "draw"], values)}}, {}, {})


def test_chains_are_thinned(monkeypatch):
    """Among draws that depend on each other, ranks would be too far at the ends."""
    args = {"refit": chain_refit, "num_simulations": 300, "num_draws": 100, "num_jobs": 1}
    assert sbc(regression, None, X, seed=0, **args).p_value > 0.01

    def as_they_are(posterior, num_draws):
        return {"slope": posterior["posterior"]["slope"].values[0, :num_draws]}

    monkeypatch.setattr(refits, "thinned", as_they_are)
    found = sbc(regression, None, X, seed=0, **args)
    assert found.p_values["slope"] < 1e-3


@pytest.mark.slow
def test_nuts_is_calibrated_as_far_as_seen():
    def refit(model, x, y):
        return nuts(model, x, y, draws=100, tune=100, chains=1, progress=False)

    args = {"num_simulations": 20, "num_draws": 20, "num_jobs": 1, "seed": 0}
    assert sbc(regression, None, X, refit=refit, **args).p_value > 0.01


# What is refused.


def test_a_model_without_latents():
    def plain(x=None, size=None):
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    for check in (sbc, tarp):
        with pytest.raises(ValueError, match="expected latents that a guide draws, got none: "):
            check(plain, None)


def test_latents_that_are_all_summed_out():
    def summed(x=None, size=None):
        with data_plate(x, size):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    with pytest.raises(ValueError, match="got none but 'k', which are summed out"):
        sbc(summed, None)


def test_a_program_whose_sites_change():
    def changing(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if torch.rand(()) < 0.5:
                z = z + pyro.sample("more", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match=r"site 'more' .* in one run and .* in another"):
        sbc(changing, guide)


def test_a_model_that_cannot_draw_data():
    def needs(x, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"it cannot draw data \(TypeError.*'x'.* arguments are x"):
        sbc(needs, None, size=10)


def test_a_prior_that_cannot_be_drawn():
    def improper(x=None, size=None):
        with data_plate(x, size):
            flat = dist.ImproperUniform(dist.constraints.real, (), ())
            z = pyro.sample("z", flat)
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"it cannot draw data \(NotImplementedError"):
        sbc(improper, None, size=10)


def test_a_model_that_draws_and_does_not_observe():
    def careless(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0))

    with pytest.raises(ValueError, match="given as data, it observes nothing"):
        sbc(careless, None)

    def other(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=None if x is None else x + 1)

    with pytest.raises(ValueError, match="'x' observes something else than was drawn"):
        sbc(other, None)


def test_a_model_without_an_argument_for_data():
    def closed(size=None):
        with pyro.plate("data", 10):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0))

    with pytest.raises(ValueError, match=r"cannot be given to it as data\. Its arguments are none"):
        sbc(closed, None)


def test_what_no_run_draws_from_the_joint_density():
    def weighed(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("more", -z.square())
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"pyro.factor site\(s\) more weigh what it draws"):
        sbc(weighed, None)


def test_a_site_with_the_name_of_the_joint_density():
    def named(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("log_p", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("log_p", dist.Normal(x / 2, 0.5**0.5))

    with pytest.raises(ValueError, match="site 'log_p' has the name of the joint log-density"):
        sbc(named, guide)


@pytest.mark.parametrize("few", [{"num_simulations": 19}, {"num_draws": 9}, {"size": 0}])
def test_too_few(analysis, few):
    ((name, value),) = few.items()
    with pytest.raises(ValueError, match=rf"{name}: expected .* got {value}"):
        sbc(analysis, ExactPosterior(analysis), **few)


def test_guides_of_one_data_set():
    model = FactorAnalysis(3, 1)
    guide = AutoNormal(model)
    guide(model(size=5))
    with pytest.raises(ValueError, match=r"AutoNormal has parameters of the data .* refit="):
        sbc(model, guide)

    def by_hand(x, size=None):
        with data_plate(x, size):
            loc = pyro.param("loc", torch.zeros(len(x), 1), event_dim=1)
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"function has parameters of the data .* refit="):
        sbc(model, by_hand)

    def of_all(x, size=None):
        pyro.sample("m", dist.Normal(pyro.param("m_loc", torch.zeros(2).double()), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"function has parameters of the data .* refit="):
        sbc(shared, of_all, size=5)


def test_points():
    def point(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Delta(x[:, :1], event_dim=1))

    with pytest.raises(ValueError, match="'z' is a point"):
        sbc(FactorAnalysis(3, 1), point)
    args = {"num_simulations": 20, "num_draws": 10, "num_jobs": 1}
    with pytest.raises(ValueError, match="'slope' is a point"):
        sbc(regression, None, X, refit=lambda model, x, y: AutoDelta(model), **args)


def test_latents_of_all_rows_without_their_number():
    with pytest.raises(
        ValueError, match=r"size: expected the number of rows .* its rows share 'm'"
    ):
        sbc(shared, of_shared())
    with pytest.raises(ValueError, match=r"guide: expected one that draws .* got None"):
        sbc(shared, None, size=10)


def test_what_refit_may_not_be_or_give():
    with pytest.raises(ValueError, match="guide: expected None beside refit"):
        sbc(shared, of_shared(), size=5, refit=lambda model, x: of_shared())
    with pytest.raises(TypeError, match="refit: expected a function"):
        sbc(shared, None, size=5, refit="nuts")
    args = {"num_simulations": 20, "num_draws": 10, "num_jobs": 1, "size": 5}
    with pytest.raises(TypeError, match=r"ArviZ object .* got NoneType"):
        sbc(shared, None, refit=lambda model, x: None, **args)

    def short(model, x):
        values = torch.randn(1, 50, 3).double().numpy()
        return to_arviz({"posterior": {"m": (["chain", "draw", "k"], values)}}, {}, {})

    with pytest.raises(ValueError, match=r"site 'm' of the shape \(2,\) .* got \(3,\)"):
        sbc(shared, None, refit=short, **args)


def test_a_posterior_that_lacks_a_latent():
    def other(model, x):
        values = torch.randn(1, 50).double().numpy()
        return to_arviz({"posterior": {"n": (["chain", "draw"], values)}}, {}, {})

    with pytest.raises(ValueError, match="'m'"):
        sbc(shared, None, size=5, refit=other, num_simulations=20, num_draws=10, num_jobs=1)
