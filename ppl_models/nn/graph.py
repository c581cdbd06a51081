r"""Graph networks: layers of torch_geometric, from the features of nodes and edges to outputs.

.. math:: H = \mathrm{relu}(\hat{A} X W_1), \qquad Y = \hat{A} H W_2

where :math:`\hat{A}` is the adjacency matrix with loops, divided by the roots of the degrees.

Shapes: `N` nodes, `D` features, `E` edges.

References:
    | Semi-Supervised Classification with Graph Convolutional Networks (Kipf & Welling, 2017)
    | https://arxiv.org/abs/1609.02907
    | Predict then Propagate: Graph Neural Networks meet Personalized PageRank
    | (Gasteiger et al., 2019), https://arxiv.org/abs/1810.05997
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn


class GraphNetwork(nn.Module):
    r"""Two graph convolutions, or a perceptron whose outputs are passed on along edges.

    Arguments:
        num_features: The number of features of a node, `D`.
        num_outputs: The number of its outputs.
        num_hidden: The number of hidden units.
        dropout: The share of features, of all nodes alike, and of hidden units that are dropped in
            training.
        hops: How often outputs are passed on, each time mixed with a tenth of what they were. None
            for convolutions.

    Raises:
        ImportError: If torch_geometric is not installed.

    Example:
        >>> network = GraphNetwork(num_features=5, num_outputs=2)
        >>> network(torch.zeros(3, 5), torch.tensor([[0, 1], [1, 0]])).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        num_features: int,
        num_outputs: int,
        num_hidden: int = 32,
        dropout: float = 0.0,
        hops: int | None = None,
    ) -> None:
        super().__init__()
        layers = _layers()
        self.dropout, self.propagate = nn.Dropout(dropout), None
        if hops is None:
            self.first = layers.GCNConv(num_features, num_hidden, normalize=False)
            self.second = layers.GCNConv(num_hidden, num_outputs, normalize=False)
        else:
            self.first = nn.Linear(num_features, num_hidden)
            self.second = nn.Linear(num_hidden, num_outputs)
            self.propagate = layers.APPNP(hops, alpha=0.1, normalize=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        edges = normalised(edge_index, x)
        along = () if self.propagate is not None else edges
        hidden = self.first(drop_features(x, self.dropout), *along).relu()  # (N, H)
        hidden = self.dropout(hidden)
        outputs = self.second(hidden, *along)
        return outputs if self.propagate is None else self.propagate(outputs, *edges)


def normalised(edge_index: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns edges with loops, `(2, E + N)`, and their weights in :math:`\hat{A}`, `(E + N,)`.

    That of torch_geometric looks for loops first, for which a GPU would have to wait.

    Arguments:
        edge_index: Edges in both directions, without loops, `(2, E)`.
        x: Features, `(N, D)`.

    Example:
        >>> edges, weights = normalised(torch.tensor([[0, 1], [1, 0]]), torch.zeros(2, 5))
        >>> weights
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    loops = torch.arange(len(x), device=x.device)
    edges = torch.cat([edge_index, loops.expand(2, -1)], 1)
    ones = torch.ones(edges.shape[1], dtype=x.dtype, device=x.device)
    degree = torch.zeros(len(x), dtype=x.dtype, device=x.device).index_add(0, edges[1], ones)
    return edges, degree.rsqrt()[edges].prod(0)


def drop_features(x: Tensor, dropout: nn.Module) -> Tensor:
    """Returns the features of nodes without those dropped, the same for all: it costs less.

    Arguments:
        x: Features, `(N, D)`, which may be sparse.
        dropout: A module, such as `nn.Dropout(0.5)`.

    Example:
        >>> x = torch.eye(2).to_sparse()
        >>> drop_features(x, nn.Dropout(0.0)).to_dense()
        tensor([[1., 0.],
                [0., 1.]])
    """
    if not x.is_sparse:
        return x * dropout(x.new_ones(x.shape[1]))
    x = x.coalesce()
    kept = dropout(x.values().new_ones(x.shape[1]))
    values = x.values() * kept[x.indices()[1]]
    return torch.sparse_coo_tensor(x.indices(), values, x.shape, check_invariants=False)


def _layers() -> Any:
    try:
        with warnings.catch_warnings():  # of torch, about what torch_geometric does
            warnings.simplefilter("ignore")
            import torch_geometric.nn  # here, because it is optional
    except ImportError as error:
        raise ImportError(
            "GraphNetwork: its layers are those of torch_geometric, which is not installed. Try "
            "pip install 'ppl-models[graphs]', or a module of your own from (x, edge_index) to "
            "outputs."
        ) from error
    return torch_geometric.nn
