"""Graphs with known groups of nodes: Zachary's karate club, and American college football."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_models.datasets.images import Folder
from ppl_models.prompt.lines import in_a_line


class Network(NamedTuple):
    """A graph of networkx, and the group of each node.

    Attributes:
        graph: The graph.
        y: The group of each node, in the order of the graph, `(N,)`.

    Example:
        >>> Network(karate().graph, karate().y).y.shape
        torch.Size([34])
    """

    graph: Any
    y: Tensor

    def __repr__(self) -> str:
        return in_a_line(self)


def karate() -> Network:
    """Returns the 34 members of a karate club, 78 friendships, and the two factions it split into.

    It comes with networkx, and has weights, which `read_graph` drops.

    References:
        | An Information Flow Model for Conflict and Fission in Small Groups (Zachary, 1977)
        | https://doi.org/10.1086/jar.33.4.3629752

    Example:
        >>> graph, y = karate()
        >>> len(graph), graph.number_of_edges(), y.bincount()
        (34, 78, tensor([17, 17]))
    """
    graph = _networkx().karate_club_graph()
    clubs = [graph.nodes[i]["club"] for i in graph]
    return Network(graph, torch.tensor([club == "Officer" for club in clubs]).long())


def football(root: Folder) -> Network:
    """Returns 115 teams of college football, their 613 games in 2000, and their 12 conferences.

    Arguments:
        root: A folder with `Graphs/football.gml`.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If networkx is not installed.
        ValueError: If it is another one.

    References:
        | Community Structure in Social and Biological Networks (Girvan & Newman, 2002)
        | https://doi.org/10.1073/pnas.122653799

    Example:
        >>> graph, y = football("data")  # doctest: +SKIP
    """
    nx = _networkx()
    file = Path(root).expanduser() / "Graphs" / "football.gml"
    if not file.is_file():
        raise FileNotFoundError(
            f"football: expected the file {file}, found none. Try fetching Newman's football.gml."
        )
    try:
        graph = nx.read_gml(file)
        y = torch.tensor([int(graph.nodes[team]["value"]) for team in graph])
    except (nx.NetworkXError, KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{file}: expected a graph in GML, whose nodes have a value each, but {error}. "
            f"Try fetching the file again."
        ) from error
    return Network(graph, y)


def _networkx() -> Any:
    try:
        import networkx  # here, because it is optional
    except ImportError as error:
        raise ImportError(
            "datasets: graphs are read by networkx, which is not installed. Try pip install "
            "'ppl-models[graphs]'."
        ) from error
    return networkx
