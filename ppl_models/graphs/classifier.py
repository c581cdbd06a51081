r"""Labels of nodes, by a graph network that sees the features and edges around them.

.. math:: y_i \mid X, A \sim \mathrm{Categorical}(\mathrm{softmax}(\mathrm{network}(X, A)_i))

The rows are nodes, by their number. It has no latents, so that its evidence of labels is exact.

Shapes: `B` nodes of a batch, `N` nodes in all, `D` features, `E` edges, `C` classes.

References:
    | Semi-Supervised Classification with Graph Convolutional Networks (Kipf & Welling, 2017)
    | https://arxiv.org/abs/1609.02907
"""

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.checks import check_at_least, check_labels
from ppl_models.graphs.pairs import check_pairs
from ppl_models.plates import data_plate
from ppl_models.prompt.lines import in_a_line

WHERE = "NodeClassifier"


class NodeClassifier(nn.Module):
    r"""Labels given nodes of a graph; the label is site `y`.

    `fit(elbo(classifier), (nodes, y))` maximises the likelihood of the labels of some nodes, and
    `log_evidence(classifier, None, others, y)` is the exact one of others. Their features and all
    edges are seen, their labels are not.

    Arguments:
        x: The features of all nodes, `(N, D)`.
        edge_index: Edges in both directions, `(2, E)`.
        num_classes: `C`.
        network: A module from `(x, edge_index)` to logits `(N, C)`, such as
            `ppl_models.nn.GraphNetwork`.

    Raises:
        ValueError: If an edge has an end that is no node.

    Example:
        >>> from ppl_models.nn import GraphNetwork
        >>> edges = torch.tensor([[0, 1], [1, 0]])
        >>> model = NodeClassifier(torch.zeros(3, 5), edges, 2, GraphNetwork(5, 2))
        >>> model(torch.tensor([2, 0])).shape
        torch.Size([2])
    """

    x: Tensor
    edge_index: Tensor

    __repr__ = in_a_line

    def __init__(self, x: Tensor, edge_index: Tensor, num_classes: int, network: nn.Module) -> None:
        super().__init__()
        check_at_least(2, num_classes=num_classes)
        check_pairs(edge_index.T, len(x), WHERE, noun="edge")
        self.num_classes, self.network = num_classes, network
        self.register_buffer("x", x, persistent=False)
        self.register_buffer("edge_index", edge_index, persistent=False)

    def forward(self, nodes: Tensor, y: Tensor | None = None, size: int | None = None) -> Tensor:
        """Scores labels `y` of `nodes`, `(B,)` each, of `size` in all, or draws some."""
        check_labels(nodes, len(self.x), None, f"{WHERE}: nodes")
        check_labels(y, self.num_classes, len(nodes), WHERE)
        with data_plate(nodes, size):
            return pyro.sample("y", self.conditional(nodes), obs=y)

    def conditional(self, nodes: Tensor) -> dist.Categorical:
        """Returns p(y | X, A) of some nodes, with batch shape `(B,)`."""
        logits = self.network(self.x, self.edge_index)
        if logits.shape != (len(self.x), self.num_classes):
            raise ValueError(
                f"{WHERE}: expected its network to give logits of shape "
                f"({len(self.x)}, {self.num_classes}), got {tuple(logits.shape)}. Try a network "
                f"with {self.num_classes} outputs."
            )
        return dist.Categorical(logits=logits[nodes])

    @torch.no_grad()
    def predict(self, nodes: Tensor) -> Tensor:
        """Returns the most probable label of each node, `(B,)`."""
        return self.conditional(nodes).logits.argmax(1)
