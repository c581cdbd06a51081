"""Other weights on what latents cost: closed forms, and the bound where the weights are one."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import Normal, kl_divergence

from guides import AmortizedNormal, LabelNormal
from ppl_models import (
    VAE,
    LinearRegression,
    MixturePrior,
    SemiSupervisedVAE,
    data_plate,
    elbo,
    weighted,
)
from ppl_models.infer.objectives.elbo import EvidenceLowerBound
from tests.support.runs import quiet

pytestmark = pytest.mark.usefixtures("float64")
REMEDIES = {"beta": {"beta": 4.0}, "free bits": {"free_bits": 0.3}, "warm-up": {"warm_up": 3}}


def pair():
    """A VAE and its guide, the same at every call, and binary rows."""
    torch.manual_seed(0)
    vae, guide = VAE(6, 3), AmortizedNormal(6, 3)
    with torch.no_grad():
        guide.encoder[-1].weight.mul_(3.0)
    return vae, guide, torch.randint(2, (10, 6), dtype=torch.float64)


def loss(objective, x, size=None, seed=1):
    torch.manual_seed(seed)
    return objective.loss(x, size=size)


def elements(guide, x):
    """The divergence of each latent from its prior, in the mean over rows, in closed form."""
    q = guide.posterior(x).base_dist
    return kl_divergence(Normal(q.loc, q.scale), Normal(0.0, 1.0)).mean(0)  # (K,)


@pytest.mark.parametrize("size", [10, 70])
def test_a_beta_weighs_what_the_draws_cost(size):
    vae, guide, x = pair()
    found = elbo(vae, guide, beta=4.0)
    found.loss(x)  # has looked at the programs: what follows draws only what it needs
    torch.manual_seed(1)
    q = guide.posterior(x)
    z = q.rsample()
    fit = vae.likelihood(vae.decoder(z)).log_prob(x)
    cost = q.log_prob(z) - Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(loss(found, x, size), (4 * cost - fit).mean())
    torch.testing.assert_close(found.reports["elbo"], (cost - fit).mean())


def test_with_a_weight_of_one_it_is_the_bound_itself():
    vae, guide, _ = pair()
    found = elbo(vae, guide, beta=1.0, free_bits=0.0, warm_up=0)
    assert type(found) is EvidenceLowerBound
    assert found.name == "elbo"
    assert "stepped" not in vars(found)


@pytest.mark.parametrize("size", [10, 70])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_free_bits_are_those_of_the_closed_form(beta, size):
    vae, guide, x = pair()
    found, none = (elbo(vae, guide, beta=beta, free_bits=f) for f in (0.3, 1e-9))
    for each in (found, none):
        each.loss(x)
    known = elements(guide, x)
    assert (known < 0.3).any()
    assert (known > 0.3).any()
    torch.manual_seed(1)
    fit = vae.likelihood(vae.decoder(guide.posterior(x).rsample())).log_prob(x).mean()
    expected = beta * known.clamp(min=0.3).sum() - fit
    torch.testing.assert_close(loss(found, x, size), expected)
    torch.testing.assert_close(loss(none, x, size), beta * known.sum() - fit)


def test_a_latent_below_its_free_bits_has_no_gradient():
    vae, guide, x = pair()
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.zero_()  # all that moves the guide is the divergence
    below = elements(guide, x) < 0.3
    loss(elbo(vae, guide, free_bits=0.3), x).backward()
    slopes = guide.encoder[-1].bias.grad.view(2, 3).abs().sum(0)
    assert torch.equal(slopes == 0, below)
    assert 0 < below.sum() < 3


def test_a_warm_up_rises_with_the_steps_and_ends_as_the_bound():
    vae, guide, x = pair()
    found, plain = elbo(vae, guide, warm_up=3), elbo(vae, guide)
    seen = []
    for _ in range(3):
        for module in found.modules().values():
            module.train()
        bound, free = loss(plain, x), loss(elbo(vae, guide, beta=1e-12), x)
        seen.append(((loss(found, x) - free) / (bound - free)).item())
        quiet(found, x, steps=1, lr=1e-12)
    assert seen == pytest.approx([1 / 3, 2 / 3, 1.0])
    for module in found.modules().values():
        module.train()
    torch.testing.assert_close(loss(found, x), loss(plain, x))


def test_a_loss_is_the_same_again_without_a_step():
    vae, guide, x = pair()
    found = elbo(vae, guide, warm_up=5)
    assert torch.equal(loss(found, x), loss(found, x))


@pytest.mark.parametrize("remedy", REMEDIES)
def test_the_history_says_what_is_not_the_bound(remedy):
    """Validation is the bound, whatever is descended, and so is a loss after the fit."""
    vae, guide, x = pair()
    plain = quiet(elbo(vae, guide), x, steps=4, lr=1e-12, validation=x, seed=0)
    found = elbo(vae, guide, **REMEDIES[remedy])
    run = quiet(found, x, steps=4, lr=1e-12, validation=x, seed=0)
    assert run.history.keys() == {found.name, "elbo", "validation"}
    assert found.name.startswith("elbo with ")
    assert found.name.endswith(" (not the bound)")
    assert run.history["elbo"] == pytest.approx(plain.history["loss"])
    assert run.history["validation"] == pytest.approx(plain.history["validation"])
    assert run.history[found.name][0] != pytest.approx(run.history["elbo"][0])
    assert torch.equal(loss(found, x), loss(elbo(vae, guide), x))


@pytest.mark.usefixtures("graphs_as_traced")
def test_a_compiled_warm_up_counts_its_steps():
    runs = []
    for compiled in (False, True):
        vae, guide, x = pair()
        found = elbo(vae, guide, warm_up=4, free_bits=0.2, beta=2.0)
        run = quiet(found, x, epochs=3, batch_size=4, lr=1e-2, seed=0, compile=compiled)
        runs.append(run.history)
        assert found.weights.steps == 9
    assert runs[0].keys() == runs[1].keys()
    for name, values in runs[0].items():
        assert runs[1][name] == pytest.approx(values)


def test_latents_that_all_rows_share_are_warmed_up_too():
    x = torch.randn(20, 2)
    model = LinearRegression(2).double()
    guide = AutoNormal(model)
    found = elbo(model, guide, warm_up=2)
    run = quiet(found, (x, x.sum(1)), steps=3, lr=1e-12, seed=0)
    first, *_, last = zip(run.history[found.name], run.history["elbo"], strict=True)
    assert first[0] < first[1] - 0.01
    assert last[0] == last[1]


def test_parts_of_a_sum_count_the_steps():
    vae, guide, x = pair()
    found = elbo(vae, guide, warm_up=4)
    quiet(weighted({found: 2.0}), x, steps=3, seed=0)
    assert found.weights.steps == 3


def test_a_run_does_not_go_on_with_another_weight(tmp_path):
    vae, guide, x = pair()
    options = {"checkpoint": tmp_path / "run", "resume": True, "seed": 0}
    quiet(elbo(vae, guide, beta=2.0), x, steps=2, **options)
    with pytest.raises(ValueError, match=r"objectives=\['elbo with beta=2 .*, now .*beta=3 "):
        quiet(elbo(vae, guide, beta=3.0), x, steps=4, **options)
    assert quiet(elbo(vae, guide, beta=2.0), x, steps=4, **options).steps == 4


def drawn(distribution):
    """A program with a latent of each row under a prior, and its guide."""

    def model(x, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", distribution)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, size=None):
        loc = pyro.param("loc", torch.zeros(()))
        with data_plate(x, size):
            pyro.sample("z", type(distribution)(loc.sigmoid(), 1.0))

    return model, guide


ONE = torch.rand(6)
SETTINGS = [
    ({"beta": 0.0}, "beta: expected a positive number, got 0.0"),
    ({"beta": float("nan")}, "beta: expected a positive number"),
    ({"free_bits": -1.0}, "free_bits: expected nats, zero or more, got -1.0"),
    ({"free_bits": float("inf")}, "free_bits: expected nats"),
    ({"warm_up": -3}, "warm_up: expected a number of steps, zero or more, got -3"),
    ({"warm_up": 0.5}, "warm_up: expected a number of steps"),
]


@pytest.mark.parametrize(("settings", "message"), SETTINGS)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        elbo(*pair()[:2], **settings)


@pytest.mark.parametrize("remedy", REMEDIES)
@pytest.mark.parametrize(
    ("estimator", "kind"),
    [
        (TraceEnum_ELBO(), "enumerated sites"),
        (TraceMeanField_ELBO(), "TraceMeanField_ELBO"),
        (
            Trace_ELBO(2, vectorize_particles=True, max_plate_nesting=1),
            "vectorised particles",
        ),
    ],
)
def test_estimators_that_do_not_tell_the_terms_apart(estimator, kind, remedy):
    with pytest.raises(ValueError, match=rf"expected the default estimator, .* got {kind}"):
        elbo(*pair()[:2], estimator, **REMEDIES[remedy])


@pytest.mark.parametrize("remedy", REMEDIES)
def test_particles_are_averaged(remedy):
    vae, guide, x = pair()
    found, many = (elbo(vae, guide, e, **REMEDIES[remedy]) for e in (None, Trace_ELBO(4)))
    for each in (found, many):
        each.loss(x)
    torch.manual_seed(1)
    singles = torch.stack([found.loss(x) for _ in range(4)])
    torch.testing.assert_close(loss(many, x), singles.mean())


@pytest.mark.parametrize("remedy", REMEDIES)
def test_programs_whose_terms_are_not_apart(remedy):
    x, y = torch.randint(2, (6, 4), dtype=torch.float64), torch.tensor([0, 1, 2, -1, -1, -1])
    enumerated = elbo(SemiSupervisedVAE(4, 3, 2), LabelNormal(4, 3, 2), **REMEDIES[remedy])
    with pytest.raises(ValueError, match="got enumerated sites, which are summed out"):
        quiet(enumerated, (x, y), steps=1)
    none = elbo(lambda x: pyro.sample("x", dist.Normal(0, 1).expand([6]).to_event(1), obs=x))
    none = elbo(none.model, beta=2.0)
    with pytest.raises(ValueError, match="expected a model with latents that cost something"):
        none.loss(ONE)
    model, _ = drawn(dist.Normal(0.0, 1.0))

    def score(x, size=None):
        loc = pyro.param("loc", torch.zeros(()))
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(loc, 1.0).has_rsample_(False))

    with pytest.raises(ValueError, match="its site 'z', a Normal, has no reparameterisation"):
        quiet(elbo(model, score, **REMEDIES[remedy]), ONE, steps=1)


def test_free_bits_without_a_formula():
    _, guide, x = pair()
    message = r"free_bits: expected latents of rows .* got the site 'z': Normal and Mixture"
    with pytest.raises(ValueError, match=message):
        quiet(elbo(VAE(6, 3, prior=MixturePrior(3, 2)), guide, free_bits=0.1), x, steps=1)
    with pytest.raises(ValueError, match="got the site 'z': StudentT and StudentT"):
        quiet(elbo(*drawn(dist.StudentT(0.5, 1.0)), free_bits=0.1), ONE, steps=1)
    model = LinearRegression(2).double()
    with pytest.raises(ValueError, match="free_bits: expected latents of rows"):
        quiet(elbo(model, AutoNormal(model), free_bits=0.1), (x[:, :2], x[:, 2]), steps=1)


def test_free_bits_of_a_site_that_counts_otherwise_in_the_guide():
    def guide(x, size=None):
        loc = pyro.param("loc", torch.zeros(()))
        with data_plate(x, size), pyro.poutine.scale(scale=0.5):
            pyro.sample("z", dist.Normal(loc, 1.0))

    model, _ = drawn(dist.Normal(0.0, 1.0))
    with pytest.raises(ValueError, match="free_bits: expected latents of rows"):
        elbo(model, guide, free_bits=0.1).loss(ONE)
