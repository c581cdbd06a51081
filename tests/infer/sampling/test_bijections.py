"""Bijections against their Jacobians."""

import pytest
import torch
from torch.distributions import constraints

from ppl_models.infer.sampling.bijections import bijection


@pytest.mark.parametrize("support", [constraints.lower_cholesky, constraints.positive_definite])
def test_volumes_are_those_of_the_jacobian(support):
    there, x = bijection(support), torch.randn(6, dtype=torch.float64)
    rows, columns = torch.tril_indices(3, 3).unbind()
    slopes = torch.autograd.functional.jacobian(lambda x: there(x)[rows, columns], x)
    found = there.log_abs_det_jacobian(x, there(x))
    torch.testing.assert_close(found, torch.linalg.slogdet(slopes).logabsdet)
    assert support.check(there(x)).all()
    torch.testing.assert_close(there.inv(there(x)), x)
    assert there.inverse_shape(there(x).shape) == x.shape
    assert there.forward_shape(x.shape) == there(x).shape
    many = bijection(constraints.independent(support, 1))
    assert many.log_abs_det_jacobian(x.expand(4, 6), many(x.expand(4, 6))).shape == ()
