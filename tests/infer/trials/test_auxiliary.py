r"""What a guide draws beside the latents: summed over, told by them, or refused.

.. math:: z_n \sim \mathcal{N}(0, 1), \quad x_n \mid z_n \sim \mathcal{N}(z_n, 1)
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)

from ppl_models import data_plate, elbo, fit, from_pyro_svi, iwae, log_evidence, predict, weighted
from ppl_models.infer.evidence.joint import sampling

X = torch.tensor([0.3, -1.2, 2.0, 0.9, -0.4, 1.1])
LOCS, MIX = torch.tensor([-1.0, 0.0, 0.5, 1.0]), torch.tensor([0.1, 0.2, 0.3, 0.4])
EXACT = dist.Normal(0.0, 2**0.5).log_prob(X).double()  # of each row
AUX = {"is_auxiliary": True}
pytestmark = pytest.mark.usefixtures("float64")


def model(x=None, size=None):
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared(x=None, size=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


ALL = dist.MultivariateNormal(torch.zeros(6).double(), torch.eye(6).double() + 1).log_prob(
    X.double()
)  # of the whole data, `z` shared


def mixture(x):
    """The components of a guide of rows, of which one is the posterior."""
    return dist.Normal(x.double()[:, None] / 2 + LOCS.double(), 0.8)


def by_component(x=None, size=None):
    with data_plate(x, size):
        a = pyro.sample("a", dist.Categorical(MIX.double()), infer=AUX)
        parts = mixture(x)
        loc = parts.loc.gather(1, a[:, None])[:, 0]
        pyro.sample("z", dist.Normal(loc, 0.8))


def one_hot(x=None, size=None):
    with data_plate(x, size):
        a = pyro.sample("a", dist.OneHotCategorical(MIX.double()), infer=AUX)
        pyro.sample("z", dist.Normal((mixture(x).loc * a).sum(1), 0.8))


def in_two_steps(x=None, size=None):
    """Two of them, one given the other: 2 a + b is the component."""
    with data_plate(x, size):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.7).double()), infer=AUX)
        b = pyro.sample("b", dist.Bernoulli(torch.where(a > 0, 4 / 7, 2 / 3)), infer=AUX)
        pyro.sample("loc", dist.Delta(x / 2 + LOCS.double()[(2 * a + b).long()]), infer=AUX)
        pyro.sample("z", dist.Normal(x / 2 + LOCS.double()[(2 * a + b).long()], 0.8))


def of_mixture(z, x):
    """log q(z | x), as the distribution of a mixture has it."""
    weights = torch.distributions.Categorical(MIX.double().expand(len(x), 4))
    return torch.distributions.MixtureSameFamily(weights, mixture(x)).log_prob(z)


@pytest.mark.parametrize("guide", [by_component, one_hot, in_two_steps])
def test_finitely_many_values_are_summed_over(guide):
    x = X.double()
    with sampling(model, guide, (x,), seed=0) as joint:
        assert joint.tiled
        draws = joint.draw(joint.all_rows, 3)
    z = draws.guide.nodes["z"]["value"].reshape(3, -1)
    torch.testing.assert_close(draws.log_q, of_mixture(z, x))
    evidence = log_evidence(model, guide, x, num_samples=4000, seed=0)
    torch.testing.assert_close(evidence.value, EXACT, atol=0.05, rtol=0)
    posterior = from_pyro_svi(model, guide, x, num_samples=5, seed=0)
    assert "a" not in posterior["posterior"]
    stats = posterior["sample_stats"]
    z = torch.from_numpy(posterior["posterior"]["z"].values[0])
    torch.testing.assert_close(
        torch.from_numpy(stats["log_p"].values[0]),
        (dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)).sum(1),
    )
    torch.testing.assert_close(torch.from_numpy(stats["log_q"].values[0]), of_mixture(z, x).sum(1))


def of_shared(x=None, size=None):
    """A branch of Python chooses, which parallel enumeration would not take."""
    a = pyro.sample("a", dist.Categorical(MIX.double()), infer=AUX)
    pyro.sample("z", dist.Normal(0.3 if a == 2 else -0.1, 0.5))


def in_a_plate(x=None, size=None):
    """The number of two coins, each of a plate of its own."""
    with pyro.plate("coins", 2):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.3).double()), infer=AUX)
    pyro.sample("z", dist.Normal(0.4 * a.sum(), 0.5))


SHARED = {
    "a branch": (of_shared, [0.3, 0.7], [0.3, -0.1]),
    "in a plate": (in_a_plate, [0.49, 0.42, 0.09], [0.0, 0.4, 0.8]),
}


@pytest.mark.parametrize("name", SHARED)
def test_latents_that_all_rows_share(name):
    guide, weights, locs = SHARED[name]
    x = X.double()
    with sampling(shared, guide, (x,), seed=0) as joint:
        draws = joint.draw(joint.all_rows, 1)
    z = draws.guide.nodes["z"]["value"]
    parts = dist.Normal(torch.tensor(locs), 0.5).log_prob(z) + torch.tensor(weights).log()
    torch.testing.assert_close(draws.log_q.squeeze(), parts.logsumexp(0))
    evidence = log_evidence(shared, guide, x, num_samples=1000, seed=0)
    assert evidence.value.item() == pytest.approx(ALL.item(), abs=0.05)


def wide(x=None, size=None):
    """A normal of normals."""
    with data_plate(x, size):
        a = pyro.sample("a", dist.Normal(x / 2, 0.5), infer=AUX)
        pyro.sample("z", dist.Normal(a, 0.5))


def counted(x=None, size=None):
    with data_plate(x, size):
        a = pyro.sample("a", dist.Poisson(torch.full_like(x, 1.0)), infer=AUX)
        pyro.sample("z", dist.Normal(a - 1, 0.8))


def left_over(x=None, size=None):
    """Two numbers, of which the latent is one."""
    with data_plate(x, size):
        both = dist.Normal(torch.zeros(len(x), 2).double(), 1.0).to_event(1)
        a = pyro.sample("a", both, infer=AUX)
        pyro.sample("z", dist.Delta(a[:, 0]))


def summed(x=None, size=None):
    """As many numbers as in the latent, and not all of them are in it."""
    with data_plate(x, size):
        a = pyro.sample("a", dist.Normal(x / 2, 0.5), infer=AUX)
        pyro.sample("b", dist.Normal(0.0, 1.0).expand([len(x)]), infer=AUX)
        pyro.sample("z", dist.Delta(a))


def masked(x=None, size=None):
    with data_plate(x, size), pyro.poutine.mask(mask=torch.arange(len(x)) % 2 == 0):
        a = pyro.sample("a", dist.Categorical(MIX.double()), infer=AUX)
        pyro.sample("z", dist.Normal(LOCS.double()[a], 0.8))


def of_ten(x=None, size=None):
    with pyro.plate("coins", 10):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.3).double()), infer=AUX)
    with data_plate(x, size):
        pyro.sample("z", dist.Normal(0.4 * a.mean(), 0.5).expand([len(x)]))


def shifted(x=None, size=None):
    """Continuous and discrete, neither of which the latent tells."""
    with data_plate(x, size):
        a = pyro.sample("a", dist.Categorical(MIX.double()), infer=AUX)
        b = pyro.sample("b", dist.Normal(x / 2, 0.5), infer=AUX)
        pyro.sample("z", dist.Delta(LOCS.double()[a] + b))


NOT_TOLD = {
    "wide": (wide, "'a' are not told"),
    "counted": (counted, "'a' are not told by the latents: its values are masked, or not finitely"),
    "too many": (of_ten, "'a' are not told by the latents: .* not finitely many, 256 in all"),
    "left over": (left_over, "are in the latents"),
    "summed": (summed, "'a', 'b' are not told"),
    "shifted": (shifted, "a `Delta` of continuous numbers depends on it"),
}


@pytest.mark.parametrize("name", NOT_TOLD)
def test_what_cannot_be_summed_is_refused(name):
    guide, said = NOT_TOLD[name]
    x = X.double()
    with pytest.raises(ValueError, match=said):
        log_evidence(model, guide, x, num_samples=10)
    with pytest.raises(ValueError, match=said):
        fit(elbo(model, guide), x, epochs=1)
    with pytest.warns(UserWarning, match=rf"{said}.*has no 'log_q'"):
        posterior = from_pyro_svi(model, guide, x, num_samples=5)
    assert "log_q" not in posterior["sample_stats"]
    assert "log_p" in posterior["sample_stats"]


def test_auxiliaries_that_are_masked_are_refused():
    for call in (
        lambda: log_evidence(model, masked, X.double(), num_samples=10),
        lambda: fit(elbo(model, masked), X.double(), epochs=1),
        lambda: from_pyro_svi(model, masked, X.double(), num_samples=5),
    ):
        with pytest.raises(
            ValueError, match="a mask leaves out entries of its site 'a' that count"
        ):
            call()


@pytest.mark.parametrize("guide", [by_component, one_hot, wide])
def test_no_objective_takes_what_its_latents_do_not_tell(guide):
    """log p(x, z) - log q(a) - log q(z | a) is too high by the entropy of what is not told."""
    x, said = X.double(), r"'a' are not told by the latents.*its reverse model"
    for estimator in (None, Trace_ELBO(num_particles=3), TraceEnum_ELBO()):
        with pytest.raises(ValueError, match=said):
            fit(elbo(model, guide, estimator), x, epochs=1)
    with pytest.raises(ValueError, match=said):
        iwae(model, guide, 3).loss(x)
    with pytest.raises(ValueError, match=said):
        fit(weighted({elbo(model, guide): 2.0}), x, epochs=1)


def test_a_part_by_hand_of_an_autoguide_is_tried():
    def by_hand(x=None, size=None):
        a = pyro.sample("a", dist.Normal(torch.tensor(0.0).double(), 0.5), infer=AUX)
        pyro.sample("z", dist.Normal(a, 0.5))

    guide, x = AutoGuideList(shared), X.double()
    guide.append(by_hand)
    for call in (lambda: log_evidence(shared, guide, x), lambda: elbo(shared, guide).loss(x)):
        with pytest.raises(ValueError, match="'a' are not told by the latents"):
            call()


def with_reverse(x=None, size=None):
    """The model with an exact reverse model of what the guide draws."""
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        parts = dist.Categorical(MIX.double()).logits + mixture(x).log_prob(z[:, None])
        pyro.sample("a", dist.Categorical(logits=parts))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_reverse_model_makes_it_a_latent():
    """As the errors recommend, whether or not the guide still marks it."""
    x = X.double()
    evidence = log_evidence(with_reverse, by_component, x, num_samples=4000, seed=0)
    torch.testing.assert_close(evidence.value, EXACT, atol=0.05, rtol=0)
    summed = log_evidence(model, by_component, x, num_samples=4000, seed=0)
    torch.testing.assert_close(evidence.value, summed.value)  # of the same draws
    unmarked = pyro.poutine.infer_config(by_component, lambda site: {"is_auxiliary": False})
    objective = elbo(with_reverse, unmarked)
    objective.prepare(x, size=6)
    losses = torch.stack([objective.loss(x) for _ in range(300)])
    assert -losses.mean() < EXACT.mean()


def stretched(factor):
    def guide(x=None, size=None):
        with data_plate(x, size):
            a = pyro.sample("a", dist.Normal(x, 2**0.5), infer=AUX)
            pyro.sample("z", dist.Delta(a / 2, torch.full_like(x, factor)))

    return guide


def test_the_change_of_volume_is_tried():
    """The exact posterior, N(x / 2, 1/2), stretched: right with log 2, and with nothing else."""
    x = X.double()
    evidence = log_evidence(model, stretched(math.log(2)), x, num_samples=3)
    torch.testing.assert_close(evidence.value, EXACT)
    torch.testing.assert_close(elbo(model, stretched(math.log(2))).loss(x), -EXACT.mean())
    for factor in (0.0, -math.log(2)):
        with pytest.raises(ValueError, match=r"lacks the change of volume\. Expected 2\.773 nats"):
            log_evidence(model, stretched(factor), x)  # of four rows, which are tried
        with pytest.raises(ValueError, match=r"lacks the change of volume\. Expected 4\.159 nats"):
            elbo(model, stretched(factor)).loss(x)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_change_of_volume_of_a_tenth_is_missed(factor):
    """By a tenth of a nat for each row: `log 1.1`."""

    def guide(said):
        def guide(x=None, size=None):
            with data_plate(x, size):
                a = pyro.sample("a", dist.Normal(x / 2 / factor, 0.5**0.5 / factor), infer=AUX)
                pyro.sample("z", dist.Delta(a * factor, torch.full_like(x, said)))

        return guide

    x, right = X.double(), -math.log(factor)
    torch.testing.assert_close(log_evidence(model, guide(right), x, num_samples=3).value, EXACT)
    for call in (lambda g: log_evidence(model, g, x), lambda g: elbo(model, g).loss(x)):
        with pytest.raises(ValueError, match="lacks the change of volume"):
            call(guide(0.0))


def test_a_fold_is_refused():
    """Two values of the auxiliary for each latent: its density is twice that."""

    def positive(x=None, size=None):
        z = pyro.sample("z", dist.HalfNormal(1.0))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x=None, size=None):
        a = pyro.sample("a", dist.Normal(torch.tensor(0.0).double(), 1.0), infer=AUX)
        pyro.sample("z", dist.Delta(a**2, -(2 * a).abs().log()))

    with pytest.raises(ValueError, match="two of its values lead to the same latents"):
        log_evidence(positive, guide, X.double())


def simplex(x=None, size=None):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(3).double()))
    s = pyro.sample("s", dist.Gamma(2.0, torch.tensor(1.0).double()))
    with data_plate(x, size):
        return pyro.sample("x", dist.Normal(w[0] - w[1], s), obs=x)


def test_constrained_auxiliaries():
    """A simplex of a simplex, and a positive number of another."""

    def guide(x=None, size=None):
        a = pyro.sample("a", dist.Dirichlet(torch.tensor([1.2, 1.0, 1.1]).double()), infer=AUX)
        b = pyro.sample("b", dist.LogNormal(torch.tensor(0.0).double(), 0.6), infer=AUX)
        pyro.sample("w", dist.Delta(a.flip(0), event_dim=1))
        pyro.sample("s", dist.Delta(1 / b, 2 * b.log()))

    def direct(x=None, size=None):
        pyro.sample("w", dist.Dirichlet(torch.tensor([1.1, 1.0, 1.2]).double()))
        pyro.sample("s", dist.LogNormal(torch.tensor(0.0).double(), 0.6))

    got, expected = (
        log_evidence(simplex, g, X.double(), num_samples=20_000, seed=1) for g in (guide, direct)
    )
    assert got.monte_carlo_error < 0.01
    assert got.mean == pytest.approx(expected.mean, abs=0.01)  # per row, 4 errors of two


def test_one_for_several_discrete_latents():
    """A discrete auxiliary that the latents tell: what they share, they have from it."""

    def pair(x=None, size=None):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.3).double()))
        b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.6).double()))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(a - b, 1.0), obs=x)

    x = X.double()
    log_joint = torch.stack(
        [
            math.log((0.3 if a else 0.7) * (0.6 if b else 0.4))
            + dist.Normal(float(a - b), 1.0).log_prob(x).sum()
            for a in (0, 1)
            for b in (0, 1)
        ]
    )

    def guide(x=None, size=None):
        both = pyro.sample("both", dist.Categorical(logits=log_joint), infer=AUX)
        pyro.sample("a", dist.Delta((both // 2).double()))
        pyro.sample("b", dist.Delta((both % 2).double()))

    evidence = log_evidence(pair, guide, x, num_samples=4)
    torch.testing.assert_close(evidence.value, log_joint.logsumexp(0, keepdim=True))
    torch.testing.assert_close(elbo(pair, guide).loss(x), -log_joint.logsumexp(0) / 6)


def test_one_of_several_that_the_latents_do_not_tell():
    """The latent is the one of them, and nothing is of the other: its outcomes are to be summed."""

    def coin(x=None, size=None):
        a = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
        with data_plate(x, size):
            return pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    def guide(x=None, size=None):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor(0.3).double()), infer=AUX)
        pyro.sample("b", dist.Bernoulli(torch.tensor(0.5).double()), infer=AUX)
        pyro.sample("z", dist.Delta(a))

    x = X.double()
    with pytest.raises(ValueError, match=r"'a', 'b' are not told by .* several of its values"):
        elbo(coin, guide).loss(x)
    outcomes = dist.Bernoulli(0.3).log_prob(torch.tensor([0.0, 1.0]).double())
    seen = torch.stack([dist.Normal(z, 1.0).log_prob(x).sum() for z in (0.0, 1.0)])
    value = log_evidence(coin, guide, x, num_samples=20_000, seed=0).value.item()
    assert value == pytest.approx((outcomes + seen).logsumexp(0).item(), abs=0.05)


PYRO = (
    AutoNormal,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoLowRankMultivariateNormal,
    AutoIAFNormal,
    AutoStructured,
)


@pytest.mark.parametrize("kind", PYRO)
def test_autoguides_of_pyro_pass_the_trial(kind, monkeypatch):
    """They are not tried, since they are right: here they are."""
    guide = kind(simplex)
    with torch.no_grad():
        guide(X.double())
    guide.double()
    for module in ("objectives.elbo", "evidence.joint"):
        monkeypatch.setattr(f"ppl_models.infer.{module}.is_of_pyro", lambda _: False)
    assert math.isfinite(log_evidence(simplex, guide, X.double(), num_samples=3).mean)
    assert elbo(simplex, guide).loss(X.double()).isfinite()


def test_new_rows_need_no_density():
    got = predict(shared, of_shared, size=3, num_samples=7)
    assert got["predictions"]["x"].shape == (1, 7, 3)
