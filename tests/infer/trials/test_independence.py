"""Programs that look at the whole batch: right where it is whole, refused where it is not."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ppl_models import data_plate, elbo, fit, from_pyro_svi, iwae, log_evidence
from ppl_models.infer.programs.program import Program, no_latents
from ppl_models.infer.trials.independence import Trial
from tests.support.every_objective import ALL, programs
from tests.support.looking import LONG, Looking
from tests.support.oracles import same, state
from tests.support.runs import quiet

X = torch.tensor([0.3, -1.2, 2.0, 0.1, 0.9, -0.4, 1.7, -2.2, 0.6, 1.1], dtype=torch.float64)


def centre_of(x):
    return x.new_zeros(len(x)), x.new_ones(len(x))


# The mean and the scale of a row, given the rows of the batch as covariates.
LOOKING = {
    "its place": lambda x: (0.3 * torch.arange(len(x)), x.new_ones(len(x))),
    "its place, in twos": lambda x: (torch.arange(len(x)) % 2 * 3.0, x.new_ones(len(x))),
    "the number of rows": lambda x: (x.new_zeros(len(x)), x.new_full((len(x),), len(x) ** 0.5)),
    "rows before it": lambda x: (0.1 * (x.cumsum(0) - x), x.new_ones(len(x))),
    "its neighbour": lambda x: (0.5 * x.roll(1), x.new_ones(len(x))),
    "the mean": lambda x: (x.mean().expand(len(x)), x.new_ones(len(x))),
    "the largest": lambda x: (x.amax().expand(len(x)), x.new_ones(len(x))),
    "the rank": lambda x: (0.2 * x.argsort().argsort(), x.new_ones(len(x))),
    "the spread": lambda x: (x.new_zeros(len(x)), x.std(unbiased=False).expand(len(x))),
}


def amortised(x, size=None):
    """A guide that looks at its own row alone."""
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(x / 2, 1.0))


@pytest.mark.parametrize("batch_size", [3, 64, 4096])
@pytest.mark.parametrize("of_batch", LOOKING.values(), ids=LOOKING)
def test_the_evidence_of_programs_that_look_at_the_batch(of_batch, batch_size):
    both = Looking(of_batch)
    found = log_evidence(both.model, both.guide, X, num_samples=20, batch_size=batch_size)
    torch.testing.assert_close(found.value, both.evidence_of(X))  # whatever is drawn
    assert found.kind == "lower bound"


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("of_batch", LOOKING.values(), ids=LOOKING)
def test_the_evidence_of_almost_no_rows(of_batch, rows):
    both = Looking(lambda x: of_batch(x) if len(x) > 1 else centre_of(x))
    found = log_evidence(both.model, both.guide, X[:rows], num_samples=20)
    torch.testing.assert_close(found.value, both.evidence_of(X[:rows]))


@pytest.mark.parametrize("of_batch", LOOKING.values(), ids=LOOKING)
def test_an_amortised_guide_of_a_model_that_looks_at_the_batch(of_batch):
    both = Looking(of_batch)
    found = log_evidence(both.model, amortised, X, num_samples=20_000, seed=0)
    torch.testing.assert_close(found.value, both.evidence_of(X), atol=0.2, rtol=0.0)


def test_a_guide_that_looks_at_the_batch():
    both = Looking(centre_of)
    guide = Looking(LOOKING["its neighbour"]).guide
    found = log_evidence(both.model, guide, X, num_samples=20_000, seed=0)
    torch.testing.assert_close(found.value, both.evidence_of(X), atol=0.1, rtol=0.0)
    with pytest.raises(ValueError, match="site 'z' of the guide: the log-density of a row depends"):
        quiet(elbo(both.model, guide), X, steps=2, batch_size=4)


@pytest.mark.parametrize("of_batch", LOOKING.values(), ids=LOOKING)
def test_draws_of_programs_that_look_at_the_batch(of_batch):
    both = Looking(of_batch)
    found = from_pyro_svi(both.model, both.guide, X, num_samples=30, batch_size=7)
    weights = torch.tensor((found["sample_stats"]["log_p"] - found["sample_stats"]["log_q"]).values)
    expected = both.evidence_of(X).sum().expand(1, 30)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("of_batch", LOOKING.values(), ids=LOOKING)
def test_minibatches_of_them_are_refused_and_the_whole_is_not(of_batch):
    both = Looking(of_batch)
    objective = elbo(both.model, both.guide)
    loader = DataLoader(TensorDataset(X), batch_size=4)
    for data, options in ((X, {"batch_size": 4}), (X, {"batch_size": 1}), (loader, {})):
        with pytest.raises(ValueError, match=r"site .* of the .*depends.*of 10 rows.*batch_size=N"):
            quiet(objective, data, steps=2, **options)
    run = quiet(objective, X, steps=1)
    assert run.history["loss"][0] == pytest.approx(-both.evidence_of(X).mean().item())


def test_a_little_of_the_batch_is_more_than_rounding_in_double_precision():
    torch.manual_seed(0)
    both = Looking(lambda x: (6e-6 * x.mean().expand(len(x)), x.new_ones(len(x))))
    with pytest.raises(ValueError, match=r"site 'x' of the model.*depends on the other rows"):
        quiet(elbo(both.model, both.guide), X, steps=1, batch_size=4)


@pytest.mark.parametrize("of_batch", LOOKING.values(), ids=LOOKING)
def test_iwae_refuses_them(of_batch):
    both = Looking(of_batch)
    objective = iwae(both.model, both.guide, num_particles=3)
    with pytest.raises(ValueError, match=r"iwae: site .* depends on the other rows.*Try elbo"):
        quiet(objective, X, steps=2)
    with pytest.raises(ValueError, match="iwae: site"):
        objective.loss(X)


def test_parameters_for_the_rows_of_a_batch_whatever_rows_these_are():
    def model(x, size=None):
        locs = pyro.param("locs_of_batch", lambda: torch.linspace(0.0, 1.0, len(x)).to(x))
        with data_plate(x, size):
            pyro.sample("x", dist.Normal(locs, 1.0), obs=x)

    with pytest.raises(ValueError, match="site 'x' of the model: the log-density of a row depends"):
        quiet(elbo(model), X, steps=2, batch_size=5)


def coupled(latents_of):
    """Rows with a latent each, of which each row sees those of others too."""

    def model(x, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(latents_of(z), 1.0), obs=x)

    matrix = torch.stack([latents_of(e) for e in torch.eye(4, dtype=X.dtype)], 1)
    cov = matrix @ matrix.T + torch.eye(4, dtype=X.dtype)
    return model, dist.MultivariateNormal(torch.zeros(4, dtype=X.dtype), cov)


COUPLED = {
    "its neighbour": lambda z: z + 0.8 * z.roll(1),
    "a walk": lambda z: z.cumsum(0),
    "the mean": lambda z: z + z.mean(),
}


@pytest.mark.parametrize("latents_of", COUPLED.values(), ids=COUPLED)
def test_rows_that_see_the_latents_of_others_have_one_evidence(latents_of):
    model, evidence = coupled(latents_of)
    expected = evidence.log_prob(X[:4])
    for guide in (amortised, AutoNormal(model, init_scale=0.8)):
        found = log_evidence(model, guide, X[:4], num_samples=20_000, seed=0)
        assert found.value.shape == (1,)
        assert found.value.item() == pytest.approx(expected.item(), abs=0.15)


def mixture(of_batch, shared=lambda k: 0.0):
    locs = torch.tensor([-1.0, 2.0], dtype=X.dtype)

    @pyro.infer.config_enumerate
    def model(x, size=None):
        mean, scale = of_batch(x)
        with data_plate(x, size):
            k = pyro.sample("k", dist.Categorical(x.new_full((2,), 0.5)))
            pyro.sample("x", dist.Normal(locs[k] + mean + shared(locs[k]), scale), obs=x)

    mean, scale = of_batch(X)
    each = dist.Normal(locs[:, None] + mean, scale).log_prob(X)
    return model, each.logsumexp(0) - torch.tensor(2.0).log()


@pytest.mark.parametrize("of_batch", LOOKING.values(), ids=LOOKING)
def test_enumerated_sites_of_programs_that_look_at_the_batch(of_batch):
    model, expected = mixture(of_batch)
    found = log_evidence(model, None, X, batch_size=3)
    torch.testing.assert_close(found.value, expected)
    assert found.kind == "exact"


def test_enumerated_sites_of_neighbours_are_no_sum_over_each_row():
    model, _ = mixture(centre_of, shared=lambda loc: loc.roll(1, -1))
    with pytest.raises(ValueError, match=r"site 'x' of the model: .*latents of other rows.*markov"):
        log_evidence(model, None, X)


def trial(name):
    pyro.clear_param_store()
    objective = ALL[name].make()
    objective.loss(*ALL[name].data)
    model, guide = programs(objective)
    guide = guide or getattr(model, "noising", None) or no_latents
    return functools.partial(Trial, Program(model, "model"), Program(guide, "guide"))


@pytest.mark.parametrize("name", [name for name, row in ALL.items() if row.evidence])
def test_no_model_of_the_library_looks_at_the_batch(name):
    data, make = ALL[name].data, trial(name)
    rows = torch.arange(len(data[0]))
    for which, size in ((rows, len(rows)), (None, len(rows)), (None, None)):
        assert make(data, which, size).of_parts() is None
        assert make(data, which, size).of_company() is None


class Net(nn.Module):
    """A network with layers that only look at the batch where they are trained, or have chance."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), *layers, nn.Linear(8, 1))

    def model(self, x, size=None):
        mean = self.net(x[:, None]).squeeze(-1)
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + mean, 1.0), obs=x)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, lambda _: nn.Dropout(0.5), lambda _: Noise()])
def test_layers_of_training_and_chance_in_a_program_are_no_alarm(kind):
    program, x = Net(kind(8)), X.float().repeat(3)
    assert quiet(elbo(program.model, amortised), x, steps=3, batch_size=10).steps == 3
    quiet(iwae(program.model, amortised, 3), x, steps=2, batch_size=10)
    assert log_evidence(program.model, amortised, x, num_samples=3).value.shape == (30,)


def test_statistics_of_each_batch_are_one():
    program = Net(nn.BatchNorm1d(8, track_running_stats=False))
    with pytest.raises(ValueError, match="site 'x' of the model: the log-density of a row depends"):
        fit(elbo(program.model, amortised), X.float(), steps=2, batch_size=5, progress=False)


def test_numbers_far_from_zero_hide_no_batch():
    """Rounding moves these log-densities, a thousandth as much as the place of a row does."""

    def model(x, size=None):
        with data_plate(x, size):
            mean = pyro.param("mean", torch.tensor(1000.0)) + 0.1 * torch.arange(len(x))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x = X.float() + 1000
    with pytest.raises(ValueError, match=r"site 'x' of the model.*depends on the other rows"):
        quiet(elbo(model), x, steps=1, batch_size=4)


def test_numbers_far_from_zero_are_no_alarm():
    program, x = Net(nn.ReLU()), X.float() * 0.1 + 1e4
    assert quiet(elbo(program.model, amortised), x, steps=2, batch_size=5, lr=1e-9).steps == 2


def test_a_trial_leaves_nothing_behind():
    program, x = Net(nn.BatchNorm1d(8), nn.Dropout(0.5)), X.float()
    program.train()
    trial = Trial(Program(program.model, "model"), Program(amortised, "guide"), (x,), None, None)
    before, draws = state(program), torch.get_rng_state()
    assert not any((trial.of_parts(), trial.of_company(), trial.of_latents()))
    assert same(state(program), before)
    assert torch.equal(torch.get_rng_state(), draws)
    assert all(module.training for module in program.modules())


def test_what_a_guide_draws_beside_its_sites_is_no_alarm():
    """Here the components without rows, of the mean field within, anew in each run."""
    make, data, _ = ALL["BayesianGaussianMixture, MixturePosterior"]
    for seed in range(5):
        pyro.set_rng_seed(seed)
        assert fit(make(), data, steps=1, batch_size=23, progress=False).steps == 1


def branching(limit):
    """Other scales where there are more rows than a few show."""
    return Looking(
        lambda x: (torch.zeros_like(x), torch.full_like(x, 3.0 if len(x) > limit else 1))
    )


@pytest.mark.parametrize("limit", [17, 40, 59, 60, 100, 500])
def test_branches_on_how_many_rows_there_are(limit):
    """Tiled, 60 rows are up to 1200 or 300: right is what the program says of 60."""
    both = branching(limit)
    for batch_size in (4096, 300):
        found = log_evidence(both.model, both.guide, LONG, num_samples=20, batch_size=batch_size)
        torch.testing.assert_close(found.value, both.evidence_of(LONG))
    draws = from_pyro_svi(both.model, both.guide, LONG, num_samples=20)["sample_stats"]
    weights = torch.tensor((draws["log_p"] - draws["log_q"]).values)
    torch.testing.assert_close(weights, both.evidence_of(LONG).sum().expand(1, 20))


@pytest.mark.parametrize(("limit", "batch_size"), [(40, 20), (20, 20), (59, 25), (20, 25)])
def test_minibatches_of_branches_are_refused(limit, batch_size):
    """Batches of 20, or of 25, 25 and 10, of 60 rows."""
    both = branching(limit)
    with pytest.raises(ValueError, match=r"depends on the other rows.*on how many there are"):
        quiet(elbo(both.model, both.guide), LONG, steps=2, batch_size=batch_size)
    alike = branching(200)  # more than there are
    assert quiet(elbo(alike.model, alike.guide), LONG, steps=2, batch_size=batch_size).steps == 2


def test_minibatches_of_rows_in_a_plate_of_another_name():
    """Which latents are of which rows is not known there, and other rows would be no alarm."""

    def rows(x, size):
        return pyro.plate("rows", size or len(x), subsample_size=len(x))

    def model(x, size=None):
        with rows(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, size=None):
        with rows(x, size):
            pyro.sample("z", dist.Normal(x / 2, pyro.param("scale", torch.tensor(0.5).double())))

    assert quiet(elbo(model, guide), LONG, steps=3, batch_size=20, lr=1e-9).steps == 3
