"""Small triangular systems in compiled code: against torch's, bit for bit up to rounding."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_models.infer.compiled.code.native import Native
from ppl_models.infer.compiled.code.solves import solve_here


def solved(triangle, right, upper):
    """The solution by a compiled step, and what it called."""
    result = torch.zeros(right.shape, dtype=right.dtype)

    def step(triangle, right, result):
        result.copy_(torch.linalg.solve_triangular(triangle, right, upper=upper))
        return ()

    inputs = [triangle, right, result]
    graph = make_fx(step, tracing_mode="fake")(*inputs)
    solve_here(graph)
    called = {str(n.target) for n in graph.graph.nodes if n.op == "call_function"}
    Native(graph, inputs)(2, inputs)
    return result, called


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("turned", [False, True])
def test_solutions_are_those_of_torch(upper, dtype, turned):
    torch.manual_seed(0)
    triangle = torch.randn(3, 7, 7, dtype=dtype) + 4 * torch.eye(7, dtype=dtype)
    triangle = triangle.mT.contiguous().mT if turned else triangle
    triangle = triangle.triu() if upper else triangle.tril()
    right = torch.randn(3, 2, 7, dtype=dtype).mT
    result, called = solved(triangle, right, upper)
    assert "ppl_models.small_solve.default" in called
    torch.testing.assert_close(result, torch.linalg.solve_triangular(triangle, right, upper=upper))


def test_large_ones_are_left_to_torch():
    torch.manual_seed(0)
    triangle = (torch.randn(1, 40, 40).double() + 10 * torch.eye(40)).tril()
    right = torch.randn(1, 40, 1).double()
    result, called = solved(triangle, right, upper=False)
    assert "ppl_models.small_solve.default" not in called
    torch.testing.assert_close(triangle @ result, right)
