"""Networks of guides and models whose outputs are not as many as the arguments say."""

import pytest
import torch
from torch import nn

from guides import AmortizedNormal, BottomUpNormal, ConditionalNormal, LabelNormal, LadderNormal
from ppl_models import VAE, AutoEncoder, elbo, fit, log_evidence
from ppl_models.autoencoders.hierarchical import HierarchicalVAE

X, Y = torch.zeros(6, 5), torch.arange(6) % 3
WRONG = [  # outputs of a network for 12 latents
    (20, r"num_latents=12, with shape \(B, 24\), got \(6, 20\). .*24 outputs, or num_latents=10"),
    (12, r"num_latents=12, with shape \(B, 24\), got \(6, 12\). Try a network with 24 outputs"),
    (23, r"got \(6, 23\)\. Try a network with 24 outputs\.$"),
]


def network(inputs, outputs):
    return nn.Linear(inputs, outputs)


@pytest.mark.parametrize(("outputs", "message"), WRONG)
def test_an_encoder_with_other_outputs_than_latents_is_refused(outputs, message):
    amortised = AmortizedNormal(5, num_latents=12, encoder=network(5, outputs))
    with pytest.raises(ValueError, match=f"AmortizedNormal: expected its encoder .*{message}"):
        amortised.posterior(X)
    with pytest.raises(ValueError, match=f"ConditionalNormal: .*encoder .*{message}"):
        ConditionalNormal(5, 3, 12, encoder=network(8, outputs))(X, Y)
    with pytest.raises(ValueError, match=f"LabelNormal: .*encoder .*{message}"):
        LabelNormal(5, 3, 12, encoder=network(8, outputs))(X, Y)
    with pytest.raises(ValueError, match=f"BottomUpNormal: .*encoder .*{message}"):
        BottomUpNormal(5, 12, 2, encoder=network(5, outputs))(X)
    with pytest.raises(ValueError, match=f"BottomUpNormal: expected its top_encoder .*{message}"):
        BottomUpNormal(5, 2, 12, top_encoder=network(2, outputs))(X)
    model = HierarchicalVAE(5, 12, 2)
    with pytest.raises(ValueError, match=f"LadderNormal: .*encoder .*{message}"):
        LadderNormal(model, 5, 12, 2, encoder=network(5, outputs))(X)
    with pytest.raises(ValueError, match=f"HierarchicalVAE: expected its top_decoder .*{message}"):
        HierarchicalVAE(5, 12, 2, top_decoder=network(2, outputs))(size=6)


def test_it_is_refused_before_the_first_step():
    guide = AmortizedNormal(5, num_latents=12, encoder=network(5, 20))
    for vae in (VAE(5, 12), VAE(5, 10)):  # the second took the 20 outputs for 10 latents
        with pytest.raises(ValueError, match="num_latents=12"):
            fit(elbo(vae, guide), X, epochs=1, progress=False)
        with pytest.raises(ValueError, match="num_latents=12"):
            log_evidence(vae, guide, X)


def test_one_row_for_all_is_refused():
    class Mean(nn.Module):
        def forward(self, x):
            return x.new_zeros(24)

    with pytest.raises(ValueError, match=r"got \(24,\)"):
        AmortizedNormal(5, 12, encoder=Mean()).posterior(X)


def test_codes_and_logits_of_another_number_are_refused():
    with pytest.raises(ValueError, match=r"AutoEncoder: .*\(B, 12\), got \(6, 24\)"):
        AutoEncoder(5, 12, encoder=network(5, 24)).encode(X)
    with pytest.raises(ValueError, match=r"LabelNormal: .*3 classes, .*\(6, 3\), got \(6, 4\)"):
        LabelNormal(5, 3, 2, classifier=network(5, 4)).label(X)


def test_a_decoder_with_other_outputs_than_features_is_refused():
    with pytest.raises(ValueError, match=r"VAE: expected the decoder .*\(B, 5\), got \(6, 1\)"):
        VAE(5, 12, decoder=network(12, 1))(size=6)
