"""The example of mixtures runs, and what it prints is right."""

import re

import pytest
import torch
from sklearn.datasets import load_iris

from ppl_models.datasets import digits
from tests.support.examples import check_pictures, numbers, run


@pytest.fixture
def printed(tmp_path, capsys):
    tiny = ["--components", "2", "--digit-components", "12", "--restarts", "1", "--epochs", "200"]
    run("gaussian_mixture", *tiny, "--outdir", tmp_path)
    text = capsys.readouterr().out
    check_pictures(tmp_path, count=5)
    return text


def test_gaussian_mixture(printed):
    # One Gaussian has a closed form: its evidence is that of the sample covariance.
    x = torch.from_numpy(load_iris().data)
    density = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    row = r"\n{} +{} +(\S+) +(\S+) +(\S+) ± (\S+) +(\S+) ± "
    evidence, bic, held_out, error, difference = numbers(row.format(1, 14), printed)
    assert evidence == pytest.approx(density.log_prob(x).mean().item(), abs=1e-3)
    assert bic == pytest.approx(-300 * evidence + 14 * torch.tensor(150.0).log().item(), abs=0.2)
    assert evidence - 0.3 < held_out < evidence
    assert 0.05 < error < 0.3
    best, best_bic, best_held_out, _, none = numbers(row.format(2, 29), printed)
    assert none == 0
    assert difference == pytest.approx(held_out - best_held_out, abs=2e-3)
    assert best > evidence
    assert best_bic < bic
    assert "Best: 2 by held-out evidence, 2 by BIC" in printed

    # Setosas are a cluster of their own, which all see.
    (counts,) = re.findall(r"setosa +(\d+) +(\d+)", printed)
    assert sorted(map(int, counts)) == [0, 50]

    ways = ("EM", "gradient", "minibatches of 50 rows")
    found = [numbers(rf"\n{name} +(\S+) +(\d+) +(\S+)\n", printed) for name in ways]
    assert [way[1] for way in found[1:]] == [200, 600]
    for value, *_ in found:
        assert value == pytest.approx(best, abs=1e-3)  # printed with three digits
        assert value == pytest.approx(found[0][0], abs=1e-4)

    train, test = digits()
    varies = train.amin(0) < train.amax(0)
    train, test = train[:, varies].double(), test[:, varies].double()
    values, vectors = torch.linalg.eigh(torch.cov(train.T, correction=0))
    covariance = (vectors * values.clamp(min=0.1**2)) @ vectors.T
    density = torch.distributions.MultivariateNormal(train.mean(0), covariance)
    row = r"\n +{} {} +(\S+) +(\S+) +(\d+)% +(\d+)% +\S+\n"
    one = numbers(row.format(1, "full"), printed)
    assert one[0] == pytest.approx(density.log_prob(train).mean().item(), abs=0.01)
    assert one[1] == pytest.approx(density.log_prob(test).mean().item(), abs=0.01)
    assert one[2:] == [10, 10]  # a tenth of the digits are zeros
    many = numbers(row.format(12, "full"), printed)
    assert many[0] > one[0] + 10
    assert many[1] > one[1] + 3
    assert min(many[2:]) > 60
