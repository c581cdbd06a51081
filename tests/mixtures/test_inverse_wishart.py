"""The inverse Wishart: scipy's density, and the way to covariances that are free."""

import numpy as np
import torch
from scipy import stats
from torch.distributions import biject_to

from ppl_models.mixtures.inverse_wishart import InverseWishart


def test_inverse_wishart_is_scipys():
    psi = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.25], [0.0, 0.25, 0.5]]).double()
    law = InverseWishart(torch.tensor(7.25).double(), psi)
    draws = law.sample((20_000,))
    expected = stats.invwishart(7.25, psi.numpy()).logpdf(draws[:9].numpy().transpose(1, 2, 0))
    np.testing.assert_allclose(law.log_prob(draws[:9]), expected, atol=1e-10)
    torch.testing.assert_close(draws.mean(0), law.mean, atol=0.02, rtol=0)
    torch.testing.assert_close(law.mean, psi / 3.25)
    assert law.expand([4]).sample().shape == (4, 3, 3)
    assert InverseWishart(torch.tensor(2.5), torch.eye(2)).mean.isinf().all()


def test_bijection_to_covariances_has_its_jacobian():
    law = InverseWishart(torch.tensor(5.0).double(), torch.eye(3).double())
    transform = biject_to(law.support)
    free = torch.randn(6).double()
    rows, columns = torch.tril_indices(3, 3)

    def lower(u):
        return transform(u)[rows, columns]

    matrix = torch.autograd.functional.jacobian(lower, free)
    got = transform.log_abs_det_jacobian(free, transform(free))
    torch.testing.assert_close(got, matrix.slogdet()[1])
    torch.testing.assert_close(transform.inv(transform(free)), free)
    assert transform.forward_shape((4, 6)) == (4, 3, 3)
    assert transform.inverse_shape((4, 3, 3)) == (4, 6)
