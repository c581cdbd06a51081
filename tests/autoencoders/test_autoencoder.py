"""Autoencoders: linear ones against PCA and the best linear filter, then the objective."""

import pyro
import pytest
import torch
from torch import nn

from guides import AmortizedNormal
from ppl_models import PCA, VAE, fit, from_pyro_svi, log_evidence
from ppl_models.autoencoders.autoencoder import AutoEncoder, DenoisingAutoEncoder
from ppl_models.autoencoders.corruption import GaussianNoise, MaskingNoise, SaltAndPepper
from ppl_models.autoencoders.reconstruction import reconstruction
from ppl_models.likelihoods import Bernoulli, Categorical, Normal


def centred(rows=60, features=5):
    x = torch.randn(rows, features, dtype=torch.float64) @ torch.randn(
        features, features, dtype=torch.float64
    )
    return x - x.mean(0)


def linear(num_features, num_latents, kind=AutoEncoder, **options):
    layers = {
        "encoder": nn.Linear(num_features, num_latents, bias=False),
        "decoder": nn.Linear(num_latents, num_features, bias=False),
    }
    return kind(num_features, num_latents, **layers, **options).double()


def test_a_linear_one_at_the_principal_components_is_at_its_optimum():
    """The squared error of a row is what PCA leaves, and no gradient is left."""
    x = centred()
    pca = PCA(5, 2).double().least_squares(x)
    autoencoder = linear(5, 2)
    with torch.no_grad():
        autoencoder.encoder.weight.copy_(pca.components)
        autoencoder.decoder.weight.copy_(pca.components.T)
    loss = reconstruction(autoencoder).loss(x)
    left = (pca.total_variance - pca.explained_variance.sum()) * (len(x) - 1) / len(x)
    torch.testing.assert_close(loss, left)
    loss.backward()
    for parameter in autoencoder.parameters():
        assert parameter.grad.abs().max() < 1e-10
    torch.testing.assert_close(autoencoder.encode(x), pca.transform(x))
    torch.testing.assert_close(autoencoder(x), pca.inverse_transform(pca.transform(x)))


@pytest.mark.slow
def test_training_finds_the_principal_subspace():
    x = centred()
    autoencoder = linear(5, 2)
    run = fit(reconstruction(autoencoder), x, steps=600, lr=0.02, seed=0)
    pca = PCA(5, 2).double().least_squares(x)
    left = (pca.total_variance - pca.explained_variance.sum()) * (len(x) - 1) / len(x)
    assert run.history["loss"][-1] == pytest.approx(left.item(), rel=1e-3)


def test_a_linear_denoiser_learns_the_filter_of_wiener():
    """With normal noise the best linear map is S (S + sigma^2 I)^-1, the mean of a Gaussian."""
    x, scale = centred(rows=400, features=3), 0.7
    covariance = x.T @ x / len(x)
    best = covariance @ torch.linalg.inv(covariance + scale**2 * torch.eye(3, dtype=x.dtype))
    autoencoder = linear(3, 3, DenoisingAutoEncoder, noise=GaussianNoise(scale))
    with torch.no_grad():
        autoencoder.encoder.weight.copy_(best)
        autoencoder.decoder.weight.copy_(torch.eye(3))
    many = x.repeat(100, 1)  # many draws of the noise
    loss = reconstruction(autoencoder).loss(many)
    loss.backward()
    expected = torch.trace(covariance - best @ covariance)  # the posterior variance
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    assert autoencoder.encoder.weight.grad.abs().max() < 0.05
    clean = (x - autoencoder(x)).square().sum(1).mean()  # without noise it only shrinks
    assert clean < 0.5 * loss
    torch.testing.assert_close(autoencoder.denoise(x), autoencoder(x))


def test_a_likelihood_gives_nats():
    x = torch.bernoulli(torch.full((8, 6), 0.4, dtype=torch.float64))
    autoencoder = AutoEncoder(6, 2, likelihood=Bernoulli()).double()
    p = autoencoder(x)
    expected = -(x * p.log() + (1 - x) * (1 - p).log()).sum(1)
    torch.testing.assert_close(autoencoder.reconstruction_loss(x), expected)
    torch.testing.assert_close(reconstruction(autoencoder).loss(x), expected.mean())
    assert AutoEncoder(6, 2, likelihood=Categorical(3)).double()(x).shape == (8, 6)
    assert AutoEncoder(6, 2, likelihood=Normal(own_scale=True)).decoder[-1].out_features == 12


def test_noise_is_what_it_says():
    x = torch.rand(400, 50) / 2 + 0.25
    noisy = GaussianNoise(0.2)(x) - x
    assert noisy.std().item() == pytest.approx(0.2, rel=0.03)
    assert noisy.mean().abs() < 0.01
    masked = MaskingNoise(0.3)(x)
    assert (masked == 0).double().mean().item() == pytest.approx(0.3, abs=0.015)
    assert ((masked == 0) | (masked == x)).all()
    salted = SaltAndPepper(0.4)(x)
    assert (salted == 0).double().mean().item() == pytest.approx(0.2, abs=0.015)
    assert (salted == 1).double().mean().item() == pytest.approx(0.2, abs=0.015)
    assert ((salted == 0) | (salted == 1) | (salted == x)).all()
    for noise in (GaussianNoise(0.2), MaskingNoise(0.3), SaltAndPepper(0.4)):
        assert not torch.equal(noise(x), noise(x))  # anew each time


def test_only_the_loss_of_a_denoising_one_is_noisy():
    x = torch.rand(9, 6)
    plain, denoising = AutoEncoder(6, 2), DenoisingAutoEncoder(6, 2, noise=MaskingNoise(0.5))
    assert torch.equal(plain.reconstruction_loss(x), plain.reconstruction_loss(x))
    assert not torch.equal(denoising.reconstruction_loss(x), denoising.reconstruction_loss(x))
    assert torch.equal(denoising.denoise(x), denoising.denoise(x))

    silent = DenoisingAutoEncoder(6, 2, noise=lambda x: x)
    silent.load_state_dict(plain.state_dict())
    torch.testing.assert_close(silent.reconstruction_loss(x), plain.reconstruction_loss(x))


def test_it_trains_with_validation_and_resumes(tmp_path):
    x = torch.rand(70, 6)

    def run(epochs, **options):
        torch.manual_seed(0)
        autoencoder = DenoisingAutoEncoder(6, 2, noise=GaussianNoise(0.1))
        run = fit(
            reconstruction(autoencoder),
            x,
            epochs=epochs,
            batch_size=16,
            lr=3e-3,
            seed=1,
            validation=x[:20],
            **options,
        )
        return run.history, autoencoder(x)

    whole, rows = run(6)
    file = tmp_path / "autoencoder.safetensors"
    run(3, checkpoint=file)
    again, resumed = run(6, checkpoint=file, resume=True)
    assert again == whole
    assert torch.equal(rows, resumed)
    assert whole["loss"][-1] < whole["loss"][0]
    assert len(whole["validation"]) == 6


@pytest.mark.parametrize("method", ["auto", "exact", "importance"])
def test_it_has_no_evidence(method):
    autoencoder, x = AutoEncoder(6, 2), torch.ones(3, 6)
    reason = "no density of rows|no pyro.sample"
    with pytest.raises(ValueError, match=reason):
        log_evidence(autoencoder, None, x, method=method)
    if method != "importance":
        with pytest.raises(ValueError, match=r"no density of rows, and so no evidence.*VAE"):
            log_evidence(autoencoder, AmortizedNormal(6, 2), x, method=method)


def test_refusals():
    x = torch.rand(40, 6)
    with pytest.raises(TypeError, match=r"reconstruction_loss.*VAE.*elbo"):
        reconstruction(VAE(6, 2))
    with pytest.raises(TypeError, match="the class AutoEncoder"):
        reconstruction(AutoEncoder)
    with pytest.raises(ValueError, match="6 features"):
        fit(reconstruction(AutoEncoder(6, 2)), torch.rand(4, 5), epochs=1)
    with pytest.raises(TypeError, match="floating-point"):
        fit(reconstruction(AutoEncoder(6, 2)), torch.ones(4, 6).long(), epochs=1)
    with pytest.raises(ValueError, match=r"expected rows of 2 features"):
        AutoEncoder(6, 2).decode(torch.zeros(3, 3))
    with pytest.raises(TypeError, match="likelihood: expected an object"):
        AutoEncoder(6, 2, likelihood=Bernoulli)
    with pytest.raises(TypeError, match=r"noise: expected a callable.*SaltAndPepper"):
        DenoisingAutoEncoder(6, 2, noise="gaussian")
    with pytest.raises(TypeError, match="noise: expected a callable"):
        DenoisingAutoEncoder(6, 2, noise=GaussianNoise)
    with pytest.raises(ValueError, match="noise: expected noisy rows of the shape"):
        fit(reconstruction(DenoisingAutoEncoder(6, 2, noise=lambda x: x[:1])), x, epochs=1)
    with pytest.raises(ValueError, match="rows alone, got 2 tensors"):
        fit(reconstruction(AutoEncoder(6, 2)), (x, x), epochs=1)


def test_rows_outside_the_support_are_found_before_the_first_step():
    x = torch.bernoulli(torch.full((600, 6), 0.5))
    x[590, 3] = 0.25
    autoencoder = AutoEncoder(6, 2, likelihood=Bernoulli())
    before = autoencoder.encoder[0].weight.clone()
    with pytest.raises(ValueError, match=r"1 of \d+ rows lie outside .* 0\.25.*binarize"):
        fit(reconstruction(autoencoder), x, epochs=1, batch_size=10)
    assert torch.equal(before, autoencoder.encoder[0].weight)


def test_a_loss_of_its_own_must_be_one_number_a_row():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)

        def reconstruction_loss(self, x):
            return (x - self.linear(x)).square()

    with pytest.raises(ValueError, match=r"one loss for each of 8 rows, got the shape \(8, 6\)"):
        fit(reconstruction(Own()), torch.rand(8, 6), epochs=1)


def test_losses_that_are_not_finite_say_where():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(1.0))

        def reconstruction_loss(self, x):
            return (self.scale * x).sum(1).log()

    x = torch.ones(8, 6)
    x[2] = -1
    with pytest.raises(FloatingPointError, match=r"reconstruction: .* loss of 1 of 8 rows"):
        fit(reconstruction(Broken()), x, epochs=1)


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf")])
def test_scales_that_are_none(bad):
    with pytest.raises(ValueError, match="scale: expected a positive number"):
        GaussianNoise(bad)


@pytest.mark.parametrize("bad", [0, -0.1, 1.5, float("nan")])
def test_probabilities_that_are_none(bad):
    for kind in (MaskingNoise, SaltAndPepper):
        with pytest.raises(ValueError, match="expected a probability"):
            kind(bad)
    with pytest.raises(ValueError, match="low < high"):
        SaltAndPepper(0.1, low=1.0, high=0.0)


def test_an_autoencoder_as_a_program_has_nothing_to_say():
    with pytest.raises(ValueError, match=r"no pyro\.sample"):
        log_evidence(lambda x: pyro.param("p", torch.ones(())), None, torch.ones(3, 6))
    with pytest.raises(ValueError, match=r"no pyro\.sample.*try model\.encode\(x\)"):
        from_pyro_svi(AutoEncoder(6, 2), None, torch.ones(3, 6))
    with pytest.raises(ValueError, match=r"no pyro\.sample"):
        from_pyro_svi(lambda x: pyro.deterministic("y", x), None, torch.ones(3, 6))
