"""Messenger guides run their model: what they say is theirs alone, and of the rows meant."""

import copy
import math
import pickle
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, AutoStructured
from pyro.infer.autoguide.effect import (
    AutoHierarchicalNormalMessenger,
    AutoNormalMessenger,
    AutoRegressiveMessenger,
)
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim.lr_scheduler import ExponentialLR

from ppl_models import (
    data_plate,
    elbo,
    from_pyro_svi,
    iwae,
    load,
    log_evidence,
    predict,
    save,
    weighted,
)
from ppl_models.infer.programs.own import own_parameters
from tests.support.conjugate import rows, shared
from tests.support.runs import quiet

pytestmark = pytest.mark.usefixtures("float64")

MESSENGERS = [AutoNormalMessenger, AutoHierarchicalNormalMessenger, AutoRegressiveMessenger]
N = 10


def both(x=None, size=None):
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(m, 1.0))
        return pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def learnt(x=None, size=None):
    w = pyro.param("w", lambda: torch.tensor(0.5))
    with data_plate(x, size):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        return pyro.sample("x", dist.Normal(z, 0.5), obs=x)


class Learnt(nn.Module):
    def forward(self, x=None, size=None):
        return learnt(x, size)


def data() -> Tensor:
    return torch.linspace(-3, 3, N) + 0.3 * torch.sin(5 * torch.arange(N).double())


def evidence(model, x: Tensor) -> Tensor:
    """Of each row, or of them all where they share a latent."""
    variance = {rows: 1.25, shared: 1.0, both: 1.25}[model]
    if model is rows:
        return dist.Normal(0.0, math.sqrt(variance)).log_prob(x)
    covariance = variance * torch.eye(len(x)) + 9.0
    return dist.MultivariateNormal(torch.zeros(len(x)), covariance).log_prob(x)[None]


def set_to_posterior(guide, x: Tensor) -> None:
    """Gives the guide of `rows` the exact posterior: N(0.8 x, 0.2)."""
    with torch.no_grad():
        scale = math.sqrt(0.2) * torch.ones(len(x))
        guide.locs.z, guide.scales.z = 0.8 * x, scale


@pytest.mark.parametrize("kind", MESSENGERS)
def test_at_the_posterior_the_bound_is_the_evidence(kind):
    """Of every draw: what the model observes is not counted twice."""
    x, objective = data(), elbo(rows, kind)
    objective.loss(x)
    set_to_posterior(objective.guide, x)
    truth = evidence(rows, x)
    torch.testing.assert_close(objective.loss(x), -truth.mean())
    found = log_evidence(rows, objective.guide, x, num_samples=3)
    torch.testing.assert_close(found.value.double(), truth)


def test_at_a_posterior_that_depends_the_bound_is_the_evidence():
    """z given m is N(0.2 m + 0.8 x, 0.2), and m is N(mean, variance)."""
    x, objective = data(), elbo(both, AutoHierarchicalNormalMessenger)
    objective.loss(x)
    guide, variance = objective.guide, 1 / (1 / 9 + N / 1.25)
    with torch.no_grad():
        guide.locs.m, guide.scales.m = variance * x.sum() / 1.25, torch.tensor(variance).sqrt()
        guide.locs.z, guide.weights.z = 0.8 * x, torch.full((N,), 0.2)
        guide.scales.z = torch.full((N,), 0.2).sqrt()
    torch.testing.assert_close(objective.loss(x), -evidence(both, x)[0] / N)
    found = log_evidence(both, guide, x, num_samples=3)
    torch.testing.assert_close(found.value.double(), evidence(both, x))


TRAINED = [(model, kind) for kind in MESSENGERS for model in (rows, shared)]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "kind"), [*TRAINED, (both, AutoNormalMessenger)])
def test_minibatches_reach_the_evidence_with_rows_that_keep_their_identity(model, kind):
    x, objective = data(), elbo(model, kind)
    schedule = partial(ExponentialLR, gamma=0.992)
    # Batches of 4, 4 and 2 rows.
    quiet(objective, x, epochs=150, batch_size=4, lr=0.08, schedule=schedule, seed=0)
    found = log_evidence(model, objective.guide, x, num_samples=1000, seed=0)
    assert found.value.sum().item() == pytest.approx(evidence(model, x).sum().item(), abs=0.15)
    posterior = from_pyro_svi(model, objective.guide, x, num_samples=200, seed=0)["posterior"]
    if model is not shared:
        means = torch.tensor(posterior["z"].values).mean((0, 1))
        assert torch.corrcoef(torch.stack([means, x]))[0, 1] > 0.99
    if model is shared:
        assert float(posterior["m"].mean()) == pytest.approx(
            9 / (9 + 1 / N) * x.mean().item(), abs=0.1
        )


@pytest.mark.slow
@pytest.mark.parametrize("model", [learnt, Learnt()])
@pytest.mark.parametrize("kind", [AutoNormalMessenger, AutoHierarchicalNormalMessenger])
def test_parameters_of_the_model_are_its_own(model, kind):
    """The guide runs the model, and has no second copy of what that learns."""
    x, objective = data() + 2, elbo(model, kind)
    quiet(objective, x, epochs=150, batch_size=4, lr=0.04, seed=0)
    names = [name for name, _ in objective.named_parameters()]
    assert [name for name in names if name.endswith("w")] == ["model.w"]
    assert "w" not in own_parameters(objective.guide)
    w = pyro.param("w").item() if model is learnt else own_parameters(model)["w"].item()
    assert list(pyro.get_param_store().keys()) == (["w"] if model is learnt else [])
    truth = dist.Normal(w, math.sqrt(1.25)).log_prob(x).sum().item()
    found = log_evidence(model, objective.guide, x, num_samples=500, seed=0)
    assert found.value.sum().item() == pytest.approx(truth, abs=0.3)
    assert w == pytest.approx(x.mean().item(), abs=0.8)


class Amortised(AutoNormalMessenger):
    """Learns the posterior of `rows` from the rows, by parameters of its own."""

    def get_posterior(self, name, prior):
        slope = pyro.param("slope", lambda: torch.tensor(0.8))
        scale = pyro.param("scale", lambda: torch.tensor(0.2).sqrt(), constraints.positive)
        return dist.Normal(slope * self.args_kwargs[0][0], scale)


def test_parameters_that_a_messenger_makes_are_its_own():
    x, guide, other = data(), Amortised(rows), Amortised(rows)
    quiet(elbo(rows, guide), x, epochs=2, batch_size=4, lr=0.1, seed=0)
    quiet(elbo(rows, other), x, epochs=1, batch_size=4, lr=0.1, seed=0)
    assert list(pyro.get_param_store().keys()) == []
    assert sorted(own_parameters(guide)) == ["scale", "slope"]
    assert own_parameters(guide)["slope"] != own_parameters(other)["slope"]


def test_an_amortised_messenger_takes_other_rows():
    x, guide = data(), Amortised(rows)
    quiet(elbo(rows, guide), x, epochs=1, lr=1e-9)
    other = torch.tensor([4.0, -1.0, 2.0])
    torch.testing.assert_close(
        log_evidence(rows, guide, other, num_samples=3).value.double(), evidence(rows, other)
    )
    drawn = predict(rows, guide, other, num_samples=2000, seed=0)["predictions"]["z"]
    means = torch.tensor(drawn.values).mean((0, 1))
    torch.testing.assert_close(means, 0.8 * other, atol=0.05, rtol=0.0)


def test_a_messenger_that_observes_by_itself_is_refused():
    class Observing(AutoNormalMessenger):
        def get_posterior(self, name, prior):
            if name == "z":
                pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))
            return super().get_posterior(name, prior)

    with pytest.raises(ValueError, match="'y' are observed"):
        quiet(elbo(rows, Observing), data(), epochs=1)


@pytest.mark.parametrize("kind", MESSENGERS)
def test_other_rows_than_those_that_were_fitted_are_refused(kind):
    x, objective = data(), elbo(rows, kind)
    quiet(objective, x, epochs=1, batch_size=4)
    guide = objective.guide
    for other in (x[:3], torch.cat([x, x])):
        for call in (log_evidence, from_pyro_svi):
            with pytest.raises(ValueError, match=f"{kind.__name__}: .* each of 10 rows, but there"):
                call(rows, guide, other, num_samples=3)
    with pytest.raises(ValueError, match="with 4 rows that it cannot place"):
        elbo(rows, guide).loss(x[:4], size=N)
    with pytest.raises(ValueError, match="has the latents 'z' of the rows that it was fitted to"):
        predict(rows, guide, x + 5, num_samples=3)
    with pytest.raises(ValueError, match=f"iwae: {kind.__name__} has parameters for each row"):
        quiet(iwae(rows, guide, 3), x, epochs=1)


def test_a_guide_of_one_row_is_of_no_other():
    """Its parameters have the shape of some that all rows share."""
    guide = AutoNormalMessenger(rows)
    quiet(elbo(rows, guide), data()[:1], epochs=1)
    with pytest.raises(ValueError, match="each of 1 rows, but there are 10"):
        log_evidence(rows, guide, data(), num_samples=3)
    everywhere = AutoNormalMessenger(rows, amortized_plates=("data",))
    quiet(elbo(rows, everywhere), data(), epochs=1, batch_size=4)
    assert log_evidence(rows, everywhere, data()[:3], num_samples=3).value.shape == (3,)


def test_parameters_of_rows_written_by_hand_are_of_no_new_rows():
    x = data()

    def guide(x, size=None):
        with data_plate(x, size):
            loc = pyro.param("loc", lambda: torch.zeros(N), event_dim=0)
            pyro.sample("z", dist.Normal(loc, 0.4))

    quiet(elbo(rows, guide), x, epochs=1, batch_size=4)
    with pytest.raises(ValueError, match="has the latents 'z' of the rows that it was fitted to"):
        predict(rows, guide, x + 5, num_samples=3)


def test_one_that_is_not_fitted_is_left_as_it_is():
    guide = AutoNormalMessenger(rows)
    with pytest.raises(ValueError, match="has not been fitted"):
        predict(rows, guide, data()[:3], num_samples=3)
    with pytest.raises(ValueError, match="iwae: "):
        quiet(iwae(rows, guide, 3), data()[:3], epochs=1)
    assert log_evidence(rows, guide, data(), num_samples=3).value.shape == (N,)


def test_new_rows_from_its_posterior():
    objective, x = elbo(shared, AutoNormalMessenger), data() + 5
    quiet(objective, x, epochs=300, batch_size=4, lr=0.05, seed=0)
    with pytest.raises(ValueError, match="would guide what is to be predicted"):
        predict(shared, objective.guide, size=3)
    posterior = from_pyro_svi(shared, objective.guide, x, num_samples=1000, seed=0)
    drawn = predict(shared, posterior, size=3, seed=0)["predictions"]["x"]
    assert float(drawn.mean()) == pytest.approx(x.mean().item(), abs=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MESSENGERS)
def test_enumerated_sites_are_hidden_from_the_class(kind):
    def mixture(x=None, size=None):
        m = pyro.sample("m", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
        with data_plate(x, size):
            infer = {"enumerate": "parallel"}
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])), infer=infer)
            return pyro.sample("x", dist.Normal(m[k], 1.0), obs=x)

    x, objective = data(), elbo(mixture, kind)
    quiet(objective, x, epochs=150, batch_size=4, lr=0.04, seed=0)
    assert set(from_pyro_svi(mixture, objective.guide, x, num_samples=5)["posterior"]) >= {"m", "k"}
    found = log_evidence(mixture, objective.guide, x, num_samples=2000, seed=0)
    at = torch.linspace(-8, 8, 400)
    prior = [dist.Normal(c, 1.0).log_prob(at) for c in (-2.0, 2.0)]
    of_row = [dist.Normal(at[:, None], 1.0).log_prob(x) + math.log(p) for p in (0.4, 0.6)]
    joint = torch.logaddexp(of_row[0][:, None], of_row[1][None]).sum(-1)
    joint = joint + prior[0][:, None] + prior[1][None]
    truth = joint.flatten().logsumexp(0) + 2 * math.log(at[1] - at[0])
    assert found.value.sum().item() == pytest.approx(truth.item(), abs=0.05)


@pytest.mark.parametrize("kind", [*MESSENGERS, AutoNormal, AutoStructured])
def test_copies_pickles_and_files_say_what_it_learned(kind, tmp_path):
    x, guide = data(), kind(shared)
    quiet(weighted({elbo(shared, guide): 1.0}), x, epochs=5, batch_size=4, lr=0.1, seed=0)
    loaded = kind(shared)
    loaded(x)
    save(tmp_path / "guide", guide=guide)
    load(tmp_path / "guide", guide=loaded)
    said = log_evidence(shared, guide, x, num_samples=4, seed=0).value
    for other in (loaded, copy.deepcopy(guide), pickle.loads(pickle.dumps(guide)), guide):
        assert torch.equal(log_evidence(shared, other, x, num_samples=4, seed=0).value, said)


def test_an_autoguide_that_was_copied_before_its_first_call_has_no_model():
    guide = AutoNormal(shared)
    for one in (copy.deepcopy(guide), guide):
        with pytest.raises(ValueError, match="AutoNormal was copied or pickled before its first"):
            elbo(shared, one)


@pytest.mark.parametrize("kind", MESSENGERS)
def test_a_run_goes_on_where_it_was(kind, tmp_path):
    ends = []
    for stops in ((4,), (2, 4)):
        for epochs in stops:
            pyro.clear_param_store()
            objective = elbo(both, kind)
            quiet(
                objective,
                data(),
                epochs=epochs,
                batch_size=4,
                seed=0,
                checkpoint=tmp_path / str(stops),
                resume=epochs != stops[0],
            )
        ends.append([p.detach().clone() for p in objective.guide.parameters()])
    assert all(map(torch.equal, *ends))


@pytest.mark.slow
def test_structured_guides_of_rows_take_the_whole_data_alone():
    x = data()
    with pytest.raises(ValueError, match=r"AutoStructured: .* in one vector.*batch_size=None"):
        quiet(elbo(both, AutoStructured), x, epochs=1, batch_size=4)
    objective = elbo(both, AutoStructured)
    quiet(objective, x, epochs=800, lr=0.03, seed=0)
    found = log_evidence(both, objective.guide, x, num_samples=4000, seed=0)
    assert found.value.item() == pytest.approx(evidence(both, x).item(), abs=0.1)
