"""Semi-supervised in two stages (M1 + M2): a VAE without labels, then labels on its latents.

The rows are noisy copies of three binary prototypes, of which six have a label.
"""

import torch

from guides import AmortizedNormal
from guides.conditional import LabelNormal
from ppl_models import VAE, SemiSupervisedVAE, elbo, fit, freeze, log_evidence
from ppl_models.likelihoods import Normal


def test_labels_of_six_rows_reach_all():
    prototypes = torch.bernoulli(torch.full((3, 20), 0.5))
    y = torch.arange(240) % 3
    x = (prototypes[y] + torch.bernoulli(torch.full((240, 20), 0.05))) % 2
    vae, encoder = VAE(20, 2), AmortizedNormal(20, 2)
    fit(elbo(vae, encoder), x, epochs=60, batch_size=60, lr=5e-3, seed=0, progress=False)
    freeze(encoder)
    z = encoder.posterior(x).mean
    assert not z.requires_grad

    known = torch.where(torch.arange(240) < 6, y, -1)
    model, guide = SemiSupervisedVAE(2, 3, 1, likelihood=Normal()), LabelNormal(2, 3, 1)
    fit(elbo(model, guide), (z, known), epochs=150, batch_size=240, lr=1e-2, seed=0, progress=False)
    right = guide.label(z[6:]).probs.argmax(1) == y[6:]
    assert right.double().mean() > 0.9
    assert log_evidence(model, guide, z, num_samples=50, seed=0).kind == "lower bound"
