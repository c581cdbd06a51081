"""PCA beside scikit-learn's, and as the limit of probabilistic PCA."""

import math

import pytest
import sklearn.decomposition
import torch
from sklearn.datasets import load_breast_cancer

from ppl_models import PCA, ProbabilisticPCA, load, save
from tests.support.oracles import grey_digits, iris, same, state


def digits():
    return grey_digits()[0]


def cancer():
    return torch.from_numpy(load_breast_cancer().data)  # variances from 1e-6 to 1e5


def wide():
    return torch.randn(8, 30, dtype=torch.float64)


CASES = [(digits, 10), (digits, 61), (cancer, 3), (iris, 2), (iris, 4), (wide, 7)]


@pytest.mark.parametrize(("data", "num_factors"), CASES)
def test_components_and_variances_are_those_of_a_peer(data, num_factors):
    x = data()
    pca = PCA(x.shape[1], num_factors).double().least_squares(x)
    peer = sklearn.decomposition.PCA(num_factors, svd_solver="full").fit(x.numpy())
    pairs = {
        "loc": peer.mean_,
        "explained_variance": peer.explained_variance_,
        "explained_variance_ratio": peer.explained_variance_ratio_,
    }
    for name, expected in pairs.items():
        torch.testing.assert_close(getattr(pca, name), torch.from_numpy(expected), msg=name)
    basis = torch.from_numpy(peer.components_)
    distance = pca.components.T @ pca.components - basis.T @ basis
    assert distance.abs().max() < 1e-8
    torch.testing.assert_close(pca.total_variance, x.var(0).sum())


@pytest.mark.parametrize(("data", "num_factors"), [(digits, 10), (cancer, 3), (iris, 4)])
def test_signs_are_those_of_a_peer(data, num_factors):
    x = data()
    pca = PCA(x.shape[1], num_factors).double().least_squares(x)
    peer = sklearn.decomposition.PCA(num_factors, svd_solver="full").fit(x.numpy())
    components = torch.from_numpy(peer.components_)
    torch.testing.assert_close(pca.components, components, atol=1e-8, rtol=0)
    z, expected = pca.transform(x), torch.from_numpy(peer.transform(x.numpy()))
    torch.testing.assert_close(z, expected, atol=1e-7, rtol=0)
    back = torch.from_numpy(peer.inverse_transform(expected.numpy()))
    torch.testing.assert_close(pca.inverse_transform(z), back, atol=1e-7, rtol=0)
    largest = pca.components.gather(1, pca.components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_components_are_orthonormal_and_scores_uncorrelated():
    x = digits()
    pca = PCA(64, 10).double().least_squares(x)
    eye = torch.eye(10).double()
    torch.testing.assert_close(pca.components @ pca.components.T, eye, atol=1e-12, rtol=0)
    scores = torch.cov(pca.transform(x).T)
    torch.testing.assert_close(scores, pca.explained_variance.diag(), atol=1e-10, rtol=0)


def test_no_other_basis_is_nearer():
    x = digits()
    pca = PCA(64, 3).double().least_squares(x)
    error = (pca.inverse_transform(pca.transform(x)) - x).square().sum(1)
    lost = (pca.total_variance - pca.explained_variance.sum()) * (len(x) - 1)
    torch.testing.assert_close(error.sum(), lost)
    for _ in range(10):
        basis = torch.linalg.qr(pca.components.T + 0.01 * torch.randn(64, 3).double()).Q
        y = x - pca.loc
        assert (y - y @ basis @ basis.T).square().sum() > lost


def test_as_many_components_as_features_give_the_rows_back():
    x = iris()
    pca = PCA(4, 4).double().least_squares(x)
    torch.testing.assert_close(pca.inverse_transform(pca.transform(x)), x)
    assert pca.explained_variance_ratio.sum().item() == pytest.approx(1, abs=1e-12)


def test_pca_is_probabilistic_pca_without_noise():
    """The error of the limit is in proportion to the variance of the noise."""
    x = iris()
    pca = PCA(4, 2).double().least_squares(x)
    deviations = pca.explained_variance.sqrt()
    model = ProbabilisticPCA(4, 2).double()
    with torch.no_grad():
        model.loc.copy_(pca.loc)
        model.loadings.copy_(pca.components.T * deviations)
    errors = []
    for scale in (1e-1, 1e-2, 1e-3):
        model.log_scale.data.fill_(math.log(scale))
        errors.append((model.posterior(x).mean * deviations - pca.transform(x)).abs().max().item())
    assert errors[1] / errors[0] == pytest.approx(1e-2, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(1e-2, rel=0.1)


def test_maximum_likelihood_has_the_same_subspace_and_variances():
    """With N in place of N - 1: lambda_k = |w_k|^2 + sigma^2."""
    x = digits()
    pca = PCA(64, 10).double().least_squares(x)
    model = ProbabilisticPCA(64, 10).double().maximum_likelihood(x)
    length = model.loadings.norm(dim=0)
    torch.testing.assert_close(model.loadings / length, pca.components.T, atol=1e-8, rtol=0)
    variance = (length**2 + model.log_scale.mul(2).exp()) * len(x) / (len(x) - 1)
    torch.testing.assert_close(variance.detach(), pca.explained_variance)


def test_batches_are_as_good_as_all_rows():
    x = iris()
    a = PCA(4, 2).double().least_squares(x)
    b = PCA(4, 2).double().least_squares(x.split(40))
    for name, value in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], value)


def test_in_float32():
    x = digits()
    exact = PCA(64, 5).double().least_squares(x)
    pca = PCA(64, 5).least_squares(x.float())
    assert pca.transform(x.float()).dtype == torch.float32
    torch.testing.assert_close(pca.components.double(), exact.components, atol=1e-6, rtol=0)


def test_a_saved_fit_comes_back(tmp_path):
    pca, other = PCA(4, 2).least_squares(iris()), PCA(4, 2)
    save(tmp_path / "pca", model=pca)
    load(tmp_path / "pca", model=other)
    assert same(state(pca), state(other))
    assert torch.equal(pca.transform(iris().float()), other.transform(iris().float()))


X = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
FLAT = torch.randn(10, 2, generator=torch.Generator().manual_seed(0)) @ torch.ones(2, 6).cumsum(1)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X[:1], ValueError, "at least two rows"),
        (X[:0], ValueError, "at least two rows"),
        (X[:3], ValueError, "3 rows vary in 2 direction.*expected 3 or more.*num_factors=2"),
        (FLAT, ValueError, "vary in 1 direction.*num_factors=1"),
        (torch.ones(10, 6), ValueError, "vary in 0 direction"),
        (X.index_fill(1, torch.tensor(2), math.nan), ValueError, "10 of 10 rows hold NaN"),
        (X.index_fill(1, torch.tensor(2), math.inf), ValueError, "hold NaN or infinity"),
        (X[:, :4], ValueError, "rows of 6 features"),
        (X[0], ValueError, "rows of 6 features"),
        (X.to(torch.int64), TypeError, "floating-point"),
    ],
)
def test_rows_that_cannot_be_fitted(x, error, message):
    pca = PCA(6, 3)
    before = state(pca)
    with pytest.raises(error, match=f"PCA: .*{message}"):
        pca.least_squares(x)
    assert same(before, state(pca))


@pytest.mark.parametrize("num_factors", [0, -1, 5])
def test_the_number_of_components(num_factors):
    with pytest.raises(ValueError, match=f"1 to 4 factors.*got num_factors={num_factors}"):
        PCA(4, num_factors)


def test_what_has_not_been_fitted_says_so():
    pca = PCA(4, 2)
    for call in (
        lambda: pca.transform(torch.zeros(3, 4)),
        lambda: pca.inverse_transform(torch.zeros(3, 2)),
        lambda: pca.explained_variance_ratio,
    ):
        with pytest.raises(RuntimeError, match=r"Try least_squares\(x\) first"):
            call()


def test_the_wrong_shapes_after_the_fit():
    pca = PCA(4, 2).least_squares(iris())
    with pytest.raises(ValueError, match="rows of 4 features"):
        pca.transform(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="rows of 2 features"):
        pca.inverse_transform(torch.zeros(3, 4))
    with pytest.raises(TypeError, match="floating-point"):
        pca.transform(torch.zeros(3, 4, dtype=torch.int64))
