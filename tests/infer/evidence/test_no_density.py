"""Models without a density of rows: whichever way one asks for their evidence, they say why."""

import re
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch

import ppl_models.sklearn
from guides import AmortizedNormal
from ppl_models import (
    GAN,
    PCA,
    AutoEncoder,
    DenoisingAutoEncoder,
    DomainAdversarial,
    elbo,
    fit,
    from_pyro_svi,
    log_evidence,
)
from ppl_models.embeddings.neighbours import BagOfNeighbours, Neighbours, SelfMaskedTransformer
from ppl_models.nn import MLP, MaskedPatches, VisionTransformer
from ppl_models.recommender.ease import EASE

FAMILIES = Path(__file__).parents[3] / "docs" / "families" / "index.md"
X = (torch.arange(24).reshape(8, 3) % 5 > 2).float()
ROWS = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
WORDS = torch.tensor([[1, 3, 2, 2], [2, 1, 0, 0]])
PATCHES = MaskedPatches(VisionTransformer(4, patch=2))
FITTED = PCA(3, 1).least_squares(torch.eye(3).repeat(3, 1))

MODELS = [  # rows, and what is to be tried
    (PCA(3, 1), X, r"PCA: it has no density.*Try ProbabilisticPCA\("),
    (FITTED, X, r"PCA: it has no density.*Try ProbabilisticPCA\("),
    (EASE(X, 1.0), X, r"EASE: it has no density.*Try ppl_models.metrics.*recall_at\("),
    (GAN(3, 1), X, r"GAN: it has no likelihood.*ppl_models.metrics"),
    (AutoEncoder(3, 1), X, r"AutoEncoder: it has no density.*Try VAE\("),
    (DenoisingAutoEncoder(3, 1), X, r"DenoisingAutoEncoder: it has no density.*Try VAE\("),
    (DomainAdversarial(3, 2), X, r"DomainAdversarial: .*no density.*compare_labels"),
    (PATCHES, torch.rand(8, 16), r"MaskedPatches: it has no density.*warm_start"),
]
NETWORKS = [
    *((MLP(3, 2), X), (Neighbours(3, 8), WORDS), (BagOfNeighbours(3, 8), WORDS)),
    (SelfMaskedTransformer(3, 4, 8, num_heads=2), WORDS),
]
TRY = r"no pyro.sample.*of a network, a model that has it inside, such as Classifier or MaskedWords"


def name(x):
    return type(x).__name__


@pytest.mark.parametrize(("model", "x", "said"), MODELS, ids=name)
def test_a_model_without_a_density_says_why(model, x, said):
    with pytest.raises(ValueError, match=said):
        log_evidence(model, None, x)


@pytest.mark.parametrize(("model", "x", "said"), MODELS[:4], ids=name)
@pytest.mark.parametrize("guide", [None, AmortizedNormal(3, 1)], ids=["alone", "with a guide"])
def test_whichever_way_it_is_asked(model, x, said, guide):
    for call in (
        lambda: log_evidence(model, guide, x, method="importance"),
        lambda: fit(elbo(model, guide), x, epochs=1, progress=False),
        lambda: from_pyro_svi(model, guide, x),
    ):
        with pytest.raises(ValueError, match=said):
            call()


@pytest.mark.parametrize(("network", "x"), NETWORKS, ids=name)
def test_a_network_says_whose_it_may_be(network, x):
    with pytest.raises(ValueError, match=TRY):
        log_evidence(network, None, x)
    with pytest.raises(ValueError, match=TRY):
        fit(elbo(network), x, epochs=1, progress=False)


def test_an_autoencoder_is_no_program_of_a_bound():
    with pytest.raises(ValueError, match=r"no pyro.sample.*AutoEncoder, try model.encode\(x\)"):
        fit(elbo(AutoEncoder(3, 1)), X, epochs=1, progress=False)


def test_all_that_the_families_list_as_such_are_here():
    rows = [line for line in FAMILIES.read_text().splitlines() if "| none: no" in line]
    listed = {found for row in rows for found in re.findall(r"[.`](\w+)`", row.split("|")[1])}
    assert len(rows) > 4
    assert listed - {"recommender"} <= {name(model) for model, *_ in MODELS}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (ppl_models.sklearn.GaussianMixture().fit(ROWS.numpy()), r"Try estimator\.model_"),
        (PCA, r"got the class PCA. Try an object"),
        (["no program"], r"Try a function with pyro.sample in it, or a model, as in VAE\("),
        (dist.Normal(0.0, 1.0), r"cannot be called with them"),
    ],
    ids=["estimator", "class", "list", "distribution"],
)
def test_what_is_no_program(given, said):
    with pytest.raises(TypeError, match=said):
        log_evidence(given, None, X)
