"""Products in compiled code: against torch's, of every way that two matrices lie in memory."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_models.infer.compiled.code import products
from ppl_models.infer.compiled.code.native import Native

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="this processor has no wide vectors"
)


def multiplied(left, right, bias, result):
    """A step that multiplies, and what it called."""

    def step(left, right, bias, result):
        result.copy_(torch.addmm(bias, left, right) + left @ right)
        return ()

    inputs = [left, right, bias, result]
    graph = make_fx(step, tracing_mode="fake")(*inputs)
    products.multiply_by_wide_vectors(graph)
    called = {str(n.target).split(".")[1] for n in graph.graph.nodes if n.op == "call_function"}
    Native(graph, inputs)(2, inputs)
    return called


@pytest.mark.parametrize(
    ("sizes", "kind"),
    [((16, 784, 20), "middle_product"), ((128, 784, 400), "large_product"), ((4, 8, 5), "mm")],
)
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)])
def test_products_are_those_of_torch(sizes, kind, turned):
    torch.manual_seed(0)
    m, k, n = sizes
    left, right = torch.randn(m, k), torch.randn(k, n)
    if turned[0]:
        left = left.t().contiguous().t()
    if turned[1]:
        right = right.t().contiguous().t()
    bias, result = torch.randn(n), torch.zeros(m, n)
    assert kind in multiplied(left, right, bias, result)
    expected = 2 * left.double() @ right.double() + bias
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5 * k**0.5)


def test_rows_of_a_wider_matrix():
    """A part of a matrix, whose rows lie further apart than they are wide."""
    torch.manual_seed(0)
    wide = torch.randn(32, 100)
    left, right, bias, result = (
        wide[:, :64],
        torch.randn(64, 64),
        torch.zeros(64),
        torch.zeros(32, 64),
    )
    assert "middle_product" in multiplied(left, right, bias, result)
    torch.testing.assert_close(result, 2 * left @ right, rtol=1e-4, atol=1e-4)
    assert torch.equal(wide[:, :64], left)


def test_a_view_of_a_product_that_is_reckoned_the_other_way_round():
    """A gradient, say, of a transposed weight, as a part of one vector."""
    torch.manual_seed(0)
    left, right, result = torch.randn(128, 128), torch.randn(128, 8), torch.zeros(1024)

    def step(left, right, result):
        result.copy_((left.t() @ right).t().t().view(1024))
        return ()

    inputs = [left, right, result]
    graph = make_fx(step, tracing_mode="fake")(*inputs)
    products.multiply_by_wide_vectors(graph)
    Native(graph, inputs)(2, inputs)
    torch.testing.assert_close(result, (left.t() @ right).flatten(), rtol=1e-4, atol=1e-4)
