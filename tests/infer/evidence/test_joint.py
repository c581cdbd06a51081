"""A model and a guide on data: which rows there are, and that every one of them is looked at."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from guides import AmortizedNormal
from ppl_models import VAE, data_plate, elbo, fit, from_pyro_svi, iwae, log_evidence
from ppl_models.infer.evidence.joint import sampling

X = torch.tensor([0.3, -1.2, 2.0, 0.7, 1.1, -0.4]).double()
THERE = torch.tensor([True] * 4 + [False, True])


def test_every_row_is_checked_against_the_support():
    vae, guide, x = VAE(6, 2), AmortizedNormal(6, 2), torch.ones(20, 6)
    x[15], x[16] = 0.5, -3.0
    for evaluate in (log_evidence, from_pyro_svi):
        with pytest.raises(ValueError, match=r"2 of 20 rows lie outside.*such as 0\.5"):
            evaluate(vae, guide, x)


def zero(x):
    return torch.zeros((), dtype=x.dtype)


def one_mean(n):
    """Numbers around a mean that they share."""
    return dist.MultivariateNormal(torch.zeros(n), torch.ones(n, n) + torch.eye(n))


def series(x):
    """A whole series as one entry of the plate."""
    with data_plate(x[None]):
        z = pyro.sample("z", dist.Normal(zero(x), 1.0))
        mean = z[:, None].expand(1, len(x))
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x[None])


def of_series(x):
    with data_plate(x[None]):
        scale = (1 + len(x)) ** -0.5
        pyro.sample("z", dist.Normal(x.sum() * scale**2, scale))


def pairs(x):
    """Two rows are an entry."""
    pair = x.reshape(-1, 2)
    with data_plate(pair):
        z = pyro.sample("z", dist.Normal(zero(x), 1.0))
        pyro.sample("x", dist.Normal(z[:, None].expand(-1, 2), 1.0).to_event(1), obs=pair)


def of_pairs(x):
    pair = x.reshape(-1, 2)
    with data_plate(pair):
        pyro.sample("z", dist.Normal(pair.sum(1) / 3, 3**-0.5))


def loop(x):
    """A plate that is a loop."""
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z_{i}", dist.Normal(zero(x), 1.0))
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])


def of_loop(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", dist.Normal(x[i] / 2, 0.5**0.5))


def columns(x):
    """The plate of another dimension than the first, as long as the few rows of a first run."""
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Normal(zero(x), 1.0))
        with pyro.plate("time", len(x), dim=-2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def of_columns(x):
    with pyro.plate("data", 4):
        scale = (1 + len(x)) ** -0.5
        pyro.sample("z", dist.Normal(x.sum(0) * scale**2, scale))


ENTRIES = {
    "series": (series, of_series, X, lambda x: one_mean(6).log_prob(x)),
    "pairs": (pairs, of_pairs, X, lambda x: one_mean(2).log_prob(x.reshape(-1, 2)).sum()),
    "loop": (loop, of_loop, X, lambda x: dist.Normal(0, 2**0.5).log_prob(x).sum()),
    "columns": (columns, of_columns, X[:, None] + X[:4], lambda x: one_mean(6).log_prob(x.T).sum()),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_of_the_plate_that_are_no_rows(name, float64):
    model, guide, x, exact = ENTRIES[name]
    evidence = log_evidence(model, guide, x, num_samples=20)
    assert evidence.value.tolist() == pytest.approx([exact(x).item()])
    assert evidence.num_rows == 6
    assert (elbo(model, guide).loss(x) * 6).item() == pytest.approx(-exact(x).item())
    stats = from_pyro_svi(model, guide, x, num_samples=3)["sample_stats"]
    assert (stats["log_p"] - stats["log_q"]).values == pytest.approx(exact(x).item())
    with pytest.raises(ValueError, match=r"'z' of the model is in a plate|an index of the plate"):
        iwae(model, guide, 3).loss(x)


@pytest.mark.parametrize("name", ["one entry", "loop"])
def test_without_latents_they_are_counted_once(name):
    def model(x):
        if name == "loop":
            for i in pyro.plate("data", len(x)):
                pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0), obs=x[i])
        else:
            with data_plate(x[None]):
                pyro.sample("x", dist.Normal(torch.zeros_like(x), 1.0).to_event(1), obs=x[None])

    exact = dist.Normal(0.0, 1.0).log_prob(X).sum().item()
    evidence = log_evidence(model, None, X)
    assert evidence.kind == "exact"
    assert evidence.value.tolist() == pytest.approx([exact])
    assert evidence.mean == pytest.approx(exact / 6)


def masked_steps(x, there):
    for t in range(len(x)):
        with poutine.mask(mask=there[t]):
            z = pyro.sample(f"z_{t}", dist.Normal(zero(x), 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[t])


def of_steps(x, there):
    for t in range(len(x)):
        pyro.sample(f"z_{t}", dist.Normal(x[t] / 2, 0.5**0.5))


def observed_in_part(x, there):
    mean = pyro.sample("mean", dist.Normal(zero(x), 1.0))
    for t in range(len(x)):
        pyro.sample(f"x_{t}", dist.Normal(mean, 1.0), obs=x[t], obs_mask=there[t])


def of_part(x, there):
    count = there.sum() + 1
    mean = pyro.sample("mean", dist.Normal((x * there).sum() / count, count**-0.5))
    for t in range(len(x)):
        wide = torch.where(there[t], 9.0, 1.0)  # anything, where it does not count
        pyro.sample(f"x_{t}_unobserved", dist.Normal(mean, wide))


@pytest.mark.parametrize(
    ("model", "guide", "exact"),
    [
        (masked_steps, of_steps, lambda x: dist.Normal(0, 2**0.5).log_prob(x).sum()),
        (observed_in_part, of_part, lambda x: one_mean(5).log_prob(x)),
    ],
)
def test_masks_of_later_steps_are_followed(model, guide, exact, float64):
    expected = exact(X[THERE]).item()
    evidence = log_evidence(model, guide, X, THERE, num_samples=20)
    assert evidence.value.tolist() == pytest.approx([expected])
    stats = from_pyro_svi(model, guide, X, THERE, num_samples=3)["sample_stats"]
    assert (stats["log_p"] - stats["log_q"]).values == pytest.approx(expected)


@pytest.mark.parametrize("evaluate", [log_evidence, from_pyro_svi])
def test_latents_of_later_steps_must_be_in_the_guide(evaluate, float64):
    def of_some(x, there):
        of_steps(x[:4], there)

    with pytest.raises(ValueError, match="'z_4', 'z_5' are neither in the guide nor enumerated"):
        evaluate(masked_steps, of_some, X, THERE)


def test_rows_that_run_apart_must_have_the_same_sites():
    length, x = torch.tensor([2, 2, 4, 3, 1, 4]), torch.randn(6, 4).double()

    def model(x, length, size=None):
        with data_plate(x, size):
            for t in range(int(length.max())):
                with poutine.mask(mask=t < length):
                    k = pyro.sample(
                        f"k_{t}", dist.Bernoulli(0.3 + zero(x)), infer={"enumerate": "parallel"}
                    )
                    pyro.sample(f"x_{t}", dist.Normal(k, 1.0), obs=x[:, t])

    parts = torch.stack(
        [
            dist.Normal(k, 1.0).log_prob(x) + p
            for k, p in zip((0.0, 1.0), torch.tensor([0.7, 0.3]).double().log(), strict=True)
        ]
    )
    exact = torch.where(torch.arange(4) < length[:, None], parts.logsumexp(0), 0.0).sum(1)
    torch.testing.assert_close(log_evidence(model, None, x, length, batch_size=2).value, exact)
    with pytest.raises(ValueError, match=r"of some rows alone, .* Try a larger batch_size"):
        from_pyro_svi(model, None, x, length, num_samples=2, batch_size=2)


@pytest.mark.parametrize("name", ["series", "pairs", "loop"])
def test_minibatches_are_of_rows(name, float64):
    model, guide, x, _ = ENTRIES[name]

    def learned(x):
        pyro.factor("tilt", -pyro.param("learned", zero(x)).square())
        model(x)

    with pytest.raises(ValueError, match="batch_size=None"):
        fit(elbo(learned, guide), x, epochs=1, batch_size=2, progress=False)
    assert fit(elbo(learned, guide), x, epochs=1, progress=False).steps == 1


def test_latents_that_are_given_are_weighed_by_row():
    """With what is enumerated summed out, and no density of a guide."""

    def moved(x=None, size=None):
        with data_plate(x, size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            k = pyro.sample("k", dist.Bernoulli(zero(X) + 0.3), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(z.sum(-1) + k, 1.0), obs=x)

    def guide(x, size=None):
        with data_plate(x, size):
            pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))

    z = torch.randn(6, 2).double()
    with sampling(moved, guide, (X,), None) as joint:
        draws = joint.weigh({"z": z})
    parts = torch.stack([dist.Normal(z.sum(-1) + k, 1.0).log_prob(X) for k in (0, 1)])
    likelihood = (parts + torch.tensor([[0.7], [0.3]]).double().log()).logsumexp(0)
    prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    torch.testing.assert_close(draws.log_p, (prior + likelihood)[None])
    assert (draws.log_q == 0).all()
