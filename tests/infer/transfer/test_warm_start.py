import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from guides import AmortizedNormal
from ppl_models import LinearRegression, elbo, fit, save, warm_start
from ppl_models.autoencoders.vae import VAE

X = torch.rand(12, 4).round()


def test_common_names_are_taken_and_the_rest_is_said():
    old = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    new = nn.Sequential(nn.Linear(2, 3), nn.Identity(), nn.Linear(3, 1))
    before = new[2].weight.clone()
    result = warm_start(new, from_=old)
    assert torch.equal(new[0].weight, old[0].weight)
    assert torch.equal(new[2].weight, before)
    assert list(result.taken) == ["0.weight", "0.bias"]
    assert next(iter(result.kept)) == "2.weight"
    lines = str(result).splitlines()
    assert lines[0] == "2 of 4 tensors taken"
    assert any("1.running_mean" in line and "left, as the model" in line for line in lines)
    assert any("2.weight" in line and "kept, as from_" in line for line in lines)


def test_buffers_go_along():
    old, new = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    old(torch.randn(10, 3))
    warm_start(new, from_=old)
    assert torch.equal(new.running_mean, old.running_mean)


def test_a_file_of_a_model_and_its_guide_starts_both_and_they_train_on(tmp_path):
    old, its = VAE(4, 2), AmortizedNormal(4, 2)
    save(tmp_path / "weights", model=old, guide=its)
    model, guide = VAE(4, 2), AmortizedNormal(4, 2)
    assert not warm_start(model, from_=tmp_path / "weights").kept
    assert not warm_start(guide, from_=str(tmp_path / "weights")).kept
    torch.manual_seed(0)
    loss = elbo(old, its).loss(X)
    torch.manual_seed(0)
    assert elbo(model, guide).loss(X) == loss
    assert fit(elbo(model, guide), X, steps=2, progress=False).steps == 2


def test_what_pyro_param_made_in_a_module_is_taken():
    class Guide(nn.Module):
        def forward(self, x, size=None):
            pyro.sample("w", pyro.distributions.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    def model(x, size=None):
        w = pyro.sample("w", pyro.distributions.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", pyro.distributions.Normal(w, 1.0).expand([len(x)]), obs=x)

    old, new, x = Guide(), Guide(), torch.ones(5)
    fit(elbo(model, old), x, steps=20, lr=0.1, progress=False)
    fit(elbo(model, new), x, steps=1, lr=1e-9, progress=False)
    assert list(warm_start(new, from_=old).taken) == ["pyro.param loc"]
    values = [pyro.poutine.trace(g).get_trace(x).nodes["loc"]["value"] for g in (old, new)]
    assert values[0] == values[1] != 0


def test_autoguides_go_along_once_they_were_called():
    model, x, y = LinearRegression(4, noise=1.0), X, X[:, 0]
    old, new = AutoNormal(model), AutoNormal(model)
    old(x, y)
    with pytest.raises(ValueError, match=r"nothing in common\. The model has no tensors"):
        warm_start(new, from_=old)
    new(x, y)
    assert len(warm_start(new, from_=old).taken) == 4


def test_other_shapes_are_listed_and_nothing_is_taken():
    old, new = VAE(4, 2), VAE(4, 3)
    before = {n: p.clone() for n, p in new.named_parameters()}
    with pytest.raises(ValueError, match=r"differ.*\(\d+, 3\) float32 and \(\d+, 2\) float32"):
        warm_start(new, from_=old)
    assert all(torch.equal(p, before[n]) for n, p in new.named_parameters())


@pytest.mark.parametrize("from_", ["module", "file"])
def test_nothing_in_common_lists_both(tmp_path, from_):
    old = nn.Sequential(nn.Linear(2, 3))
    save(tmp_path / "weights", old=old)
    source = old if from_ == "module" else tmp_path / "weights"
    with pytest.raises(ValueError, match=r"nothing in common.*weight \(3, 2\).*0\.weight \(3, 2\)"):
        warm_start(nn.Linear(2, 3), from_=source)


def test_bad_sources(tmp_path):
    layer = nn.Linear(2, 3)
    with pytest.raises(TypeError, match="from_: expected a module, or a file"):
        warm_start(layer, from_=layer.state_dict())
    with pytest.raises(TypeError, match="expected a module to fill, got function"):
        warm_start(lambda x: x, from_=layer)
    with pytest.raises(FileNotFoundError):
        warm_start(layer, from_=tmp_path / "none")
    save(tmp_path / "two", a=layer, b=nn.Linear(2, 3))
    with pytest.raises(
        ValueError, match="expected one module with names of this one, got 'a', 'b'"
    ):
        warm_start(layer, from_=tmp_path / "two")
    vae, guide = VAE(4, 2), AmortizedNormal(4, 2)
    fit(elbo(vae, guide), X, steps=1, checkpoint=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="expected weights"):
        warm_start(vae, from_=tmp_path / "run")
    mask = nn.Module()
    mask.register_buffer("weight", torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"weight: \(3, 2\) float32 and \(3, 2\) int64"):
        warm_start(layer, from_=mask)
