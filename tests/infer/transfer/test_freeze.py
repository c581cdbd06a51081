import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch import nn

from guides import AmortizedNormal
from ppl_models import VAE, LinearRegression, elbo, fit, freeze, unfreeze

X = torch.rand(12, 4).round()


def moved(modules, before):
    now = [p for m in modules for p in m.parameters()]
    return [not torch.equal(p, q) for p, q in zip(now, before, strict=True)]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_frozen_part_stays_and_the_rest_learns(compiled, graphs_as_traced):
    vae, guide = VAE(4, 2), AmortizedNormal(4, 2)
    freeze(vae, "decoder")
    before = [p.clone() for m in (vae, guide) for p in m.parameters()]
    fit(elbo(vae, guide), X, steps=3, lr=0.1, compile=compiled, progress=False)
    frozen = len(list(vae.decoder.parameters()))
    assert moved([vae.decoder], before[:frozen]) == [False] * frozen
    assert all(moved([vae, guide], before)[len(list(vae.parameters())) :])


def test_a_run_with_frozen_parts_is_resumed_bit_for_bit(tmp_path):
    def run(steps, path, resume=False):
        torch.manual_seed(1)
        vae, guide = VAE(4, 2), AmortizedNormal(4, 2)
        freeze(guide, "encoder.0")
        settings = {"seed": 0, "lr": 0.1, "batch_size": 5, "progress": False}
        fit(elbo(vae, guide), X, steps=steps, checkpoint=path, resume=resume, **settings)
        return vae, guide

    whole = run(6, tmp_path / "whole")
    run(3, tmp_path / "parts")
    parts = run(6, tmp_path / "parts", resume=True)
    for one, other in zip(whole, parts, strict=True):
        for p, q in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(p, q)
            assert p.requires_grad == q.requires_grad


@pytest.mark.parametrize("names", [(), ("decoder",), ("decoder.2",)])
def test_a_run_is_not_resumed_with_other_parts_frozen(tmp_path, names):
    """As many, of other names, would go on with the moments of others."""

    def run(steps, *names, resume=False):
        vae = VAE(4, 2)
        if names:
            freeze(vae, *names)
        fit(
            elbo(vae, AmortizedNormal(4, 2)),
            X,
            steps=steps,
            checkpoint=tmp_path / "run",
            resume=resume,
            seed=0,
            progress=False,
        )

    run(2, "decoder.0")
    with pytest.raises(
        ValueError, match=r"written by a run with frozen=\['model.decoder.0.weight'"
    ):
        run(4, *names, resume=True)
    run(4, "decoder.0", resume=True)


def test_a_site_of_an_autoguide_stays():
    model, guide = LinearRegression(4, noise=1.0), AutoNormal(LinearRegression(4, noise=1.0))
    guide(X, X[:, 0])
    freeze(guide, "weights")
    before = guide.median(X, X[:, 0])
    fit(elbo(model, guide), (X, X[:, 0]), steps=3, lr=0.1, progress=False)
    after = guide.median(X, X[:, 0])
    assert torch.equal(before["weights"], after["weights"])
    assert before["bias"] != after["bias"]
    assert not guide.scales.weights_unconstrained.requires_grad


def test_a_site_of_an_amortised_guide_is_all_of_it():
    guide = AmortizedNormal(4, 2)
    freeze(guide, "z")
    assert not any(p.requires_grad for p in guide.parameters())
    unfreeze(guide, "encoder.0", "encoder.2.bias")
    assert [n for n, p in guide.named_parameters() if p.requires_grad] == [
        "encoder.0.weight",
        "encoder.0.bias",
        "encoder.2.bias",
    ]


def test_a_name_that_does_not_exist_is_an_error_with_near_names():
    vae = VAE(4, 2)
    with pytest.raises(
        ValueError, match="VAE has no part, parameter or site 'decodr'; it has 'dec"
    ):
        freeze(vae, "decoder", "decodr")
    assert all(p.requires_grad for p in vae.parameters())  # nothing was frozen by half
    model = LinearRegression(4, noise=1.0)
    guide = AutoMultivariateNormal(model)
    with pytest.raises(ValueError, match=r"no parameters yet. Try guide\(\*batch\) once"):
        freeze(guide, "weights")
    guide(X, X[:, 0])
    with pytest.raises(ValueError, match="'weights'; it has 'loc', 'scale', 'scale_tril'"):
        freeze(guide, "weights")
    with pytest.raises(TypeError, match="expected a module, got list"):
        freeze([nn.Linear(2, 2)])
