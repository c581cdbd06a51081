"""What makes the host wait for a GPU: the same numbers without it."""

import pyro.distributions as dist
import pytest
import torch
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_models.infer.compiled import waits
from ppl_models.linalg import cholesky_or_nan


@pytest.mark.parametrize("diagonal", [-2, -1, 0])
def test_triangles_by_indices_are_those_by_masks(diagonal):
    matrix = torch.randn(3, 5, 5, dtype=torch.double)
    vector = tril_matrix_to_vec(matrix, diagonal)
    assert torch.equal(waits.from_triangle(matrix, diagonal), vector)
    assert torch.equal(waits.to_triangle(vector, diagonal), vec_to_tril_matrix(vector, diagonal))


def matrices():
    root = torch.randn(3, 4, 4, dtype=torch.double)
    return root @ root.mT + torch.eye(4)


@pytest.mark.parametrize("upper", [False, True])
def test_factors(upper):
    matrix = matrices()
    factor = cholesky_or_nan(matrix, upper=upper)
    torch.testing.assert_close(factor, torch.linalg.cholesky(matrix, upper=upper))
    matrix[1] = -matrix[1]
    factor = cholesky_or_nan(matrix, upper=upper)
    assert factor[1].isnan().all()
    assert factor[[0, 2]].isfinite().all()


@pytest.mark.parametrize(("shape", "left"), [((4,), True), ((4, 2), True), ((2, 4), False)])
def test_solutions(shape, left):
    matrix, right = matrices(), torch.randn(3, *shape, dtype=torch.double)
    torch.testing.assert_close(
        waits.solve_or_nan(matrix, right, left=left), torch.linalg.solve(matrix, right, left=left)
    )
    matrix[1] = 0
    assert waits.solve_or_nan(matrix, right, left=left)[1].isnan().all()
    assert waits.solve_or_nan(matrix, right, left=left)[0].isfinite().all()


def test_torch_is_as_before_afterwards():
    before = torch.linalg.cholesky, torch.linalg.solve
    with waits.without_waits(torch.device("meta")):
        assert torch.linalg.cholesky is cholesky_or_nan
        assert torch.linalg.solve is waits.solve_or_nan
    with waits.without_waits(torch.device("cpu")):  # where an error is worth more
        assert (torch.linalg.cholesky, torch.linalg.solve) == before
    assert (torch.linalg.cholesky, torch.linalg.solve) == before


def graph_of(program, *inputs):
    with waits.without_waits(inputs[0].device):
        return make_fx(program, pre_dispatch=True, _allow_non_fake_inputs=True)(*inputs)


def places(graph):
    return {str(x.device) for x in graph.buffers()}


X = torch.randn(3, device="meta")


def test_numbers_are_moved_to_the_device():
    graph = graph_of(lambda x: (x * torch.tensor(2.0)).sum() + torch.tensor([1.0, 2.0]).sum(), X)
    assert "cpu" in places(graph)
    waits.tidy(graph, X.device)
    assert places(graph) == {"meta"}
    assert graph(X).device == X.device


def test_what_the_program_holds_stays_where_it_is():
    table = torch.ones(3)
    graph = graph_of(lambda x: x + table.to(x.device), X)
    waits.tidy(graph, X.device, [table])
    assert any(x is table for x in graph.buffers())


def test_numbers_among_others_of_the_host_stay():
    graph = graph_of(lambda x: x.sum() + (torch.tensor(2.0) * torch.arange(3)).sum(), X)
    waits.tidy(graph, X.device)
    assert "cpu" in places(graph)
    assert graph(X).device == X.device


HELD = torch.tensor(0.5)
ON_HOST = {
    "nothing": (lambda x, number: x.sum(), False),
    "a constant": (lambda x, number: x.sum() * torch.tensor(2.0), False),
    "a constant among others": (lambda x, number: x.sum() * torch.arange(3).sum(), False),
    "an input": (lambda x, number: x.sum() * number, True),
    "what the program holds": (lambda x, number: x.sum() * HELD, True),
    "a draw": (lambda x, number: x.sum() * torch.rand(()), True),
    "a draw of Pyro's": (lambda x, number: x.sum() * dist.Normal(0.0, 1.0).rsample(), True),
    "a draw on the device": (lambda x, number: torch.rand_like(x).sum(), False),
}


@pytest.mark.parametrize("name", ON_HOST)
def test_what_differs_on_the_host_from_call_to_call(name):
    """A CUDA graph would read it once."""
    program, expected = ON_HOST[name]
    graph = graph_of(program, X, torch.tensor(1.0))
    waits.tidy(graph, X.device, [HELD])
    assert waits.varies_on_host(graph, X.device, [HELD]) == expected


def test_questions_leave_and_draws_stay():
    module = torch.nn.Linear(3, 1)

    def program(x):
        torch.rand(2)
        law = dist.Normal(x, 1.0, validate_args=False)
        return module.to(x.device)(x).sum() + law.log_prob(x).sum()

    x = torch.randn(4, 3)
    graph = graph_of(program, x)
    assert "shallow" in graph.code
    waits.tidy(graph, x.device)
    assert "shallow" not in graph.code
    assert "rand." in graph.code
    torch.testing.assert_close(graph(x), program(x))
