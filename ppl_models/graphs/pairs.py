r"""Pairs of nodes, the rows of all models of edges.

A pair is :math:`(i, j)`, in either order, of two nodes.

Shapes: `P` pairs, `N` nodes.
"""

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ppl_models.checks import listed


def check_pairs(pairs: Tensor, num_nodes: int, where: str, noun: str = "pair") -> None:
    """Raises an error unless these are pairs of two of the nodes.

    Arguments:
        pairs: The numbers of both nodes, `(P, 2)`.
        num_nodes: The number of nodes, `N`.
        where: What to call the model in errors.
        noun: What to call a pair.

    Raises:
        TypeError: If they are no whole numbers.
        ValueError: If they have another shape, there is no such node, or one is paired with itself.

    Example:
        >>> check_pairs(torch.tensor([[0, 2], [1, 0]]), num_nodes=3, where="model")
    """
    if not isinstance(pairs, Tensor) or pairs.is_floating_point() or pairs.dtype == torch.bool:
        got = pairs.dtype if isinstance(pairs, Tensor) else type(pairs).__name__
        raise TypeError(
            f"{where}: expected {noun}s of nodes as a tensor of whole numbers, got {got}. "
            f"Try read_graph(graph).pairs()."
        )
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(
            f"{where}: expected {noun}s (i, j) of nodes, with shape (P, 2), got "
            f"{tuple(pairs.shape)}. Try read_graph(graph).pairs()."
        )
    # Reading from another device would make it wait at every step, and no graph can hold a check.
    if pairs.device.type == "cpu" and get_proxy_mode() is None:
        _check_nodes(pairs, num_nodes, where, noun)


def _check_nodes(pairs: Tensor, num_nodes: int, where: str, noun: str) -> None:
    outside = ((pairs < 0) | (pairs >= num_nodes)).any(1)
    if outside.any():
        raise ValueError(
            f"{where}: expected nodes 0 to {num_nodes - 1}, got {int(outside.sum())} {noun}(s) "
            f"with others, such as {tuple(pairs[outside][0].tolist())}. Try num_nodes as the "
            f"number of nodes, or ids.unique(return_inverse=True)[1], which numbers them from 0 on."
        )
    loops = pairs[:, 0] == pairs[:, 1]
    if loops.any():
        raise ValueError(
            f"{where}: expected {noun}s of two nodes, got {int(loops.sum())} of a node with itself "
            f"(node {listed(pairs[loops, 0].tolist())}): there is no place for loops in these "
            f"models. Try torch_geometric.utils.remove_self_loops, or "
            f"graph.remove_edges_from(networkx.selfloop_edges(graph))."
        )


def pair_ids(pairs: Tensor, num_nodes: int) -> Tensor:
    """Returns the number of each pair among all, in the order of `torch.triu_indices`.

    Example:
        >>> pair_ids(torch.tensor([[0, 1], [0, 2], [2, 1]]), num_nodes=3)
        tensor([0, 1, 2])
    """
    i, j = pairs.min(1).values, pairs.max(1).values
    return i * (2 * num_nodes - i - 1) // 2 + j - i - 1


def dense(pairs: Tensor, edges: Tensor, num_nodes: int) -> tuple[Tensor, Tensor]:
    """Returns edges and which pairs are known as symmetric matrices of float64, `(N, N)` each."""
    matrices = torch.zeros(2, num_nodes, num_nodes, dtype=torch.float64, device=pairs.device)
    i, j = pairs.unbind(1)
    for matrix, values in zip(
        matrices, (edges.double(), torch.ones_like(edges).double()), strict=True
    ):
        matrix[i, j] = values
        matrix[j, i] = values
    return matrices[0], matrices[1]
