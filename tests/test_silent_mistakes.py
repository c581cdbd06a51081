"""Mistakes that ran and gave numbers: networks of another shape, packs of copies, NaN as black."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from guides import AmortizedNormal
from guides.conditional import ConditionalNormal, LabelNormal
from guides.ladder import BottomUpNormal
from ppl_models import VAE, data_plate, elbo, fit, log_evidence
from ppl_models.autoencoders.autoencoder import AutoEncoder
from ppl_models.autoencoders.conditional import ConditionalVAE
from ppl_models.autoencoders.hierarchical import HierarchicalVAE
from ppl_models.autoencoders.reconstruction import reconstruction
from ppl_models.autoencoders.semi_supervised import SemiSupervisedVAE
from ppl_models.autoregressive.made import MADE
from ppl_models.diffusion.denoising import denoising
from ppl_models.diffusion.latent import LatentDiffusion
from ppl_models.diffusion.model import Diffusion
from ppl_models.diffusion.samplers import ddim, guided
from ppl_models.gan.game import adversarial
from ppl_models.gan.model import GAN
from ppl_models.likelihoods import Bernoulli, Categorical, LogisticMixture
from ppl_models.metrics import prdc
from ppl_models.nn import MLP, ResNet, TimeMLP

quiet = functools.partial(fit, epochs=1, seed=0, progress=False)
X = torch.tensor([[0.0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1]]).repeat(4, 1)  # (12, 4)
Y = torch.arange(12) % 3


def one(num_inputs: int) -> nn.Module:
    return MLP(num_inputs, 1)


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: elbo(VAE(4, 2, decoder=one(2)), AmortizedNormal(4, 2)), X),
        (
            lambda: elbo(
                VAE(4, 2, LogisticMixture(2, 1), decoder=MLP(2, 3)), AmortizedNormal(4, 2)
            ),
            X,
        ),
        (lambda: elbo(HierarchicalVAE(4, 3, 2, decoder=one(3)), BottomUpNormal(4, 3, 2)), X),
        (
            lambda: elbo(ConditionalVAE(4, 3, 2, decoder=one(5)), ConditionalNormal(4, 3, 2)),
            (X, Y),
        ),
        (lambda: elbo(SemiSupervisedVAE(4, 3, 2, decoder=one(5)), LabelNormal(4, 3, 2)), (X, Y)),
        (lambda: reconstruction(AutoEncoder(4, 2, decoder=one(2))), X),
        (lambda: reconstruction(AutoEncoder(4, 2, decoder=one(2), likelihood=Bernoulli())), X),
    ],
)
def test_one_output_is_not_spread_over_all_features(make, data):
    with pytest.raises(ValueError, match=r"expected the decoder to give . output\(s\) for each"):
        quiet(make(), data)


def test_a_decoder_of_another_shape_has_no_means_either():
    model = LatentDiffusion(VAE(4, 2, decoder=one(2)), Diffusion(2, num_steps=2))
    for call in (lambda: model(size=3), lambda: model.vae.mean(torch.zeros(3, 2))):
        with pytest.raises(ValueError, match=r"shape \(B, 4\), got \(3, 1\)"):
            call()


@pytest.mark.parametrize(
    ("network", "target"),
    [
        (ResNet((2, 2), channels=8), "levels"),  # one logit for all levels says nothing
        (TimeMLP(4, 1), "v"),
        (TimeMLP(4, 12), "levels"),
    ],
)
def test_a_network_of_another_shape_is_told_what_is_expected(network, target):
    diffusion = Diffusion(4, network, target=target, likelihood=Categorical(2), num_steps=3)
    with pytest.raises(ValueError, match=r"network: expected outputs of shape \(12, \d\) for"):
        quiet(denoising(diffusion), X)


def test_packs_are_not_made_of_copies():
    """With eight rows in four parts, a pack of four would hold each row twice."""
    gan = GAN(4, 2, packing=4)
    with pytest.raises(ValueError, match=r"packing: expected 4 rows or more for each step"):
        quiet(adversarial(gan, critic_steps=5), X[:8])
    assert quiet(adversarial(gan, critic_steps=3), X).steps == 1


def test_grey_levels_have_no_exact_evidence_where_checks_are_off():
    grey = X.clone()
    grey[11, 3] = 0.5
    for enabled in (True, False):
        with (
            pyro.validation_enabled(enabled),
            pytest.raises(ValueError, match=r"1 of 12 rows lie outside .* binarize\(x\)"),
        ):
            log_evidence(MADE(4), None, grey)


def test_bits_per_dim_leave_labels_out():
    """log p(x, y) over the pixels of x alone would be no bits per pixel."""
    model, guide = SemiSupervisedVAE(4, 3, 2), LabelNormal(4, 3, 2)
    joint = log_evidence(model, guide, X, Y, num_samples=5)
    with pytest.raises(ValueError, match="rows without their labels"):
        _ = joint.bits_per_dim
    rows = log_evidence(model, guide, X, num_samples=5)
    assert rows.bits_per_dim == pytest.approx(-rows.mean / (4 * math.log(2)))


@pytest.mark.parametrize("how", ["handler", "distribution"])
def test_bits_per_dim_are_refused_where_pixels_are_masked(how):
    """Bits over all pixels of what half of them say would flatter by two."""
    mask = torch.tensor([True, True, False, False])

    def model(x=None, size=None):
        with data_plate(x, size) as rows:
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pixels = dist.Bernoulli(logits=torch.zeros(len(z), 4))
            if how == "distribution":
                return pyro.sample("x", pixels.mask(mask.expand(len(z), 4)).to_event(1), obs=x)
            with poutine.mask(mask=rows % 2 == 0):
                return pyro.sample("x", pixels.to_event(1), obs=x)

    evidence = log_evidence(model, AmortizedNormal(4, 2), X, num_samples=5)
    with pytest.raises(ValueError, match="missing or masked"):
        _ = evidence.bits_per_dim
    assert "bits" not in str(evidence)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e6])
def test_prdc_of_copies(scale):
    """More than k copies of a row make its ball a point, in which the copies still lie."""
    torch.manual_seed(0)
    few = scale * torch.rand(3, 50)
    x = few.repeat_interleave(10, 0)
    same = prdc(x, x[torch.randperm(30)])
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    if scale:
        other = prdc(x, x + scale)
        assert (other.precision, other.recall, other.coverage) == (0, 0, 0)


def test_samples_of_a_diffusion_model_drop_nothing():
    class Mode(TimeMLP):
        def forward(self, x, log_snr, y=None):
            assert not self.training
            return super().forward(x, log_snr, y)

    diffusion = Diffusion(4, Mode(4, 4, num_classes=3)).train()
    diffusion.sample(3, ddim, 4, y=Y[:3])
    assert diffusion.network.training


def test_nan_is_no_black_picture():
    diffusion = Diffusion(4, likelihood=Categorical(2))
    with torch.no_grad():
        next(diffusion.network.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="3 of 3 rows hold NaN"):
        diffusion.sample(3, ddim, 4)
    for strength in (math.nan, math.inf, "2"):
        with pytest.raises(ValueError, match="guidance: expected a finite strength"):
            guided(lambda z, log_snr: z, lambda z, log_snr: z, strength)


def test_schedules_and_labels_that_do_not_fit():
    with pytest.raises(TypeError, match="expected a tensor of log-SNRs"):
        Diffusion(4, schedule=lambda t: 3.0)
    diffusion = Diffusion(4, TimeMLP(4, 4, num_classes=3))
    with pytest.raises(TypeError, match=r"Diffusion: expected a tensor of labels, got torch\.bool"):
        quiet(denoising(diffusion), (X, Y.bool()))
    hot = torch.eye(3)[Y]
    for model, guide in (
        (ConditionalVAE(4, 3, 2), ConditionalNormal(4, 3, 2)),
        (SemiSupervisedVAE(4, 3, 2), LabelNormal(4, 3, 2)),
    ):
        with pytest.raises(ValueError, match=r"one-hot labels"):
            quiet(elbo(model, guide), (X, hot))
        if isinstance(model, ConditionalVAE):
            with pytest.raises(TypeError, match=r"Try data=\(x, y\)"):
                quiet(elbo(model, guide), X)


@pytest.mark.parametrize("size", [0, -1])
def test_no_rows_to_sample(size):
    for model in (VAE(4, 2), MADE(4), GAN(4, 2)):
        with pytest.raises(ValueError, match="data_plate: expected size=1 row or more"):
            model(size=size)
