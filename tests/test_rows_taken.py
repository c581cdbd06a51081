"""What methods of models say of rows that are no tensors, or of another precision than they."""

import inspect

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from guides import AmortizedNormal, BottomUpNormal, ConditionalNormal
from ppl_models import (
    GAN,
    PCA,
    AutoEncoder,
    BayesianGaussianMixture,
    Classifier,
    Coral,
    DenoisingAutoEncoder,
    Diffusion,
    DomainAdversarial,
    FactorAnalysis,
    GaussianDiscriminant,
    GaussianMixture,
    LinearRegression,
    PoissonMixture,
    ProbabilisticPCA,
    log_evidence,
)

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 2
HOLES = torch.where(torch.arange(120).reshape(40, 3) % 11 == 3, torch.nan, X)
LENIENT = {"missing": "marginalise"}
FORMS = {
    "array": lambda x: x.numpy(),
    "float64": lambda x: x.double(),
    "array of float64": lambda x: x.double().numpy(),
    "frame": lambda x: pd.DataFrame(x.numpy()),
}
NO_TENSOR = "Try torch.tensor(numpy.asarray(x), dtype=torch.float32)."
SAID = dict.fromkeys(FORMS, NO_TENSOR) | {
    "float64": "expected rows of torch.float32, as the model, got torch.float64. Try x.to("
}
MODELS = [
    *((FactorAnalysis(3, 1), X), (FactorAnalysis(3, 1, **LENIENT), HOLES)),
    *((ProbabilisticPCA(3, 1), X), (PCA(3, 1).least_squares(X), X)),
    *((GaussianMixture(3, 2), X), (GaussianMixture(3, 2, **LENIENT), HOLES)),
    *((PoissonMixture(3, 2), X.abs().round()), (BayesianGaussianMixture(3, 2), X)),
    *((LinearRegression(3, noise=1.0), X), (GaussianDiscriminant(3, 2), X)),
    *((Classifier(3, 2), X), (DomainAdversarial(3, 2), X), (Coral(3), X)),
    *((AutoEncoder(3, 1), X), (DenoisingAutoEncoder(3, 1), X), (Diffusion(3), X), (GAN(3, 1), X)),
    *((AmortizedNormal(3, 2), X), (ConditionalNormal(3, 2, 2), X), (BottomUpNormal(3, 2, 1), X)),
]


def methods(model):
    """The public methods that take rows, and perhaps labels, and no more; programs left out."""
    for name, method in inspect.getmembers(type(model), inspect.isfunction):
        if name.startswith("_") or name == "forward" or hasattr(nn.Module, name):
            continue
        parameters = list(inspect.signature(method).parameters.values())[1:]
        needed = [p.name for p in parameters if p.default is p.empty]
        if needed in (["x"], ["x", "y"]) and parameters[-1].name != "size":
            yield name, (Y,) if "y" in needed else ()


def error_of(model, name, *data):
    """What a method raises, if anything."""
    try:
        getattr(model, name)(*data)
    except Exception as error:
        return error


CASES = [
    pytest.param(model, name, rows, labels, id=f"{type(model).__name__}.{name}-{n}")
    for n, (model, rows) in enumerate(MODELS)
    for name, labels in methods(model)
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("model", "name", "rows", "labels"), CASES)
def test_rows_are_taken_or_it_is_said_what_to_do(model, name, rows, labels, form):
    labels = tuple(y.to(rows.dtype) if isinstance(model, LinearRegression) else y for y in labels)
    if error_of(model, name, rows, *labels) is None:  # else it takes none such
        found = error_of(model, name, FORMS[form](rows), *labels)
        assert found is None or isinstance(found, TypeError)
        assert found is None or SAID[form] in str(found)


def test_there_are_many():
    assert len(CASES) > 50
    taken = {(type(m.values[0]).__name__, m.values[1]) for m in CASES}
    assert {("FactorAnalysis", "posterior"), ("GaussianMixture", "impute")} <= taken


def test_numbers_of_another_precision_are_taken_where_that_is_right():
    factors, mixture = FactorAnalysis(3, 1), GaussianMixture(3, 2)
    for model in (factors, mixture):
        torch.testing.assert_close(model.bic(X.double()), model.bic(X))
    torch.testing.assert_close(mixture.posterior(X.double()).probs, mixture.posterior(X).probs)
    factors.double().posterior(X.double())


def test_an_evidence_says_so_too():
    mixture = PoissonMixture(3, 2)
    with pytest.raises(RuntimeError) as caught:
        log_evidence(mixture, None, X.abs().round().double())
    assert any("Try x.float()" in note for note in caught.value.__notes__)
    assert np.isfinite(log_evidence(mixture, None, X.abs().round().double().numpy()).mean)
