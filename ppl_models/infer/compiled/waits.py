"""What makes the host wait for a GPU at each step, and is taken out of a graph.

Checks of values, masks and the errors of factorisations are read from the device; numbers that a
program makes on the host are copied to it. No CUDA graph can hold these. The first step of a run
is the program's own, and has the checks.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, transforms
from torch.fx import GraphModule, Node

from ppl_models.infer.compiled.replaced import replaced
from ppl_models.linalg import cholesky_or_nan


@contextmanager
def without_waits(device: torch.device) -> Iterator[None]:
    """A context for tracing, in which torch does the same without a wait.

    Distributions that were made earlier, such as the priors of a module, have their checks on. A
    matrix without a factor raises on the CPU; elsewhere the factor is NaN, which shows in the loss.
    """
    changes: list[tuple[Any, str, Callable[..., Any]]] = [
        (Distribution, "_validate_sample", lambda self, value: None),
        (transforms, "vec_to_tril_matrix", to_triangle),
        (transforms, "tril_matrix_to_vec", from_triangle),
    ]
    if device.type != "cpu":
        changes.append((torch.linalg, "cholesky", cholesky_or_nan))
        changes.append((torch.linalg, "solve", solve_or_nan))
    with ExitStack() as stack:
        for owner, name, function in changes:
            stack.enter_context(replaced(owner, name, function))
        yield


def to_triangle(vector: Tensor, diag: int = 0) -> Tensor:
    """Torch's `vec_to_tril_matrix`, by indices instead of a mask."""
    n = next(n for n in count(1) if _size(n, diag) >= vector.shape[-1])
    matrix = vector.new_zeros(*vector.shape[:-1], n, n)
    rows, columns = torch.tril_indices(n, n, diag, device=vector.device)
    matrix[..., rows, columns] = vector
    return matrix


def from_triangle(matrix: Tensor, diag: int = 0) -> Tensor:
    """Torch's `tril_matrix_to_vec`, alike."""
    n = matrix.shape[-1]
    rows, columns = torch.tril_indices(n, n, diag, device=matrix.device)
    return matrix[..., rows, columns]


def _size(n: int, diag: int) -> int:
    return sum(min(max(row + 1 + diag, 0), n) for row in range(n))


def solve_or_nan(matrix: Tensor, right: Tensor, *, left: bool = True) -> Tensor:
    """`torch.linalg.solve`, NaN where there is no solution."""
    solution, info = torch.linalg.solve_ex(matrix, right, left=left)
    vector = solution.dim() < matrix.dim()
    failed = (info != 0)[..., None] if vector else (info != 0)[..., None, None]
    return solution.masked_fill(failed, torch.nan)


def tidy(graph: GraphModule, device: torch.device, held: Iterable[Tensor] = ()) -> None:
    """Takes out of a graph what has no use, and moves the numbers made in it to the device.

    Of no use are questions that were asked and answered, such as those of `Module.to`, on which
    the compiler would break the graph into pieces. Draws stay, so that those after them do.

    Arguments:
        graph: What was traced.
        device: Where it runs.
        held: Tensors that the program holds, and may change: they stay where they are.
    """
    graph.graph.eliminate_dead_code()
    on_host = [node for node in graph.graph.nodes if _place(node) not in (None, device)]
    constants = [node for node in on_host if node.op == "get_attr"]
    values = {str(node.target): getattr(graph, str(node.target)) for node in constants}
    kept = {id(x) for x in held}
    if all(_follows(node) for node in on_host if node.op != "get_attr") and not any(
        id(value) in kept for value in values.values()
    ):
        for name, value in values.items():
            setattr(graph, name, value.to(device))
    graph.recompile()


def varies_on_host(graph: GraphModule, device: torch.device, held: Iterable[Tensor]) -> bool:
    """Whether something on the host differs from call to call, which no CUDA graph reads anew.

    A number on the host, such as a weight that is annealed, is a constant to a kernel.

    Arguments:
        graph: What was traced, tidied.
        device: Where it runs.
        held: Tensors that the program holds, and may change.
    """
    kept = {id(x) for x in held}

    def varies(node: Node) -> bool:
        if node.op == "get_attr":
            value = getattr(graph, str(node.target))
            return id(value) in kept or value.requires_grad
        drawn = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        return drawn or (node.op == "placeholder" and bool(node.users))

    return any(varies(node) for node in graph.graph.nodes if _place(node) not in (None, device))


def _place(node: Node) -> torch.device | None:
    value = node.meta.get("val")
    return value.device if isinstance(value, Tensor) else None


def _follows(node: Node) -> bool:
    """Whether it is on the host only because what it is made from is."""
    return bool(node.all_input_nodes) and "device" not in node.kwargs
