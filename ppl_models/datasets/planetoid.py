"""Citation graphs of the Planetoid collection: papers, their words, who cites whom, their fields.

The files are pickles, the one exception to the rule that nothing is unpickled. They are read by an
unpickler that knows the few names that arrays need, and refuses a file with any other before that
is looked up, let alone called.

Shapes: `N` papers, `D` words, `E` citations.

References:
    | Revisiting Semi-Supervised Learning with Graph Embeddings (Yang et al., 2016)
    | https://arxiv.org/abs/1603.08861
"""

import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppl_models.datasets.images import Folder
from ppl_models.prompt.lines import in_a_line

PARTS = ("x", "y", "tx", "ty", "allx", "ally", "graph")
NUM_VALID = 500


class Citations(NamedTuple):
    """Papers that cite one another.

    Attributes:
        x: Whether each word is in each paper, 0. or 1., `(N, D)`.
        y: The field of each paper, -1 where it has none, `(N,)`.
        edges: Which papers cite one another, each pair once, without loops, `(E, 2)`.
        train: The papers whose label is given, 20 of each field.
        valid: 500 papers, to choose settings by.
        test: 1000 papers.

    Example:
        >>> nodes = torch.arange(3)
        >>> edges = torch.tensor([[0, 1], [1, 2]])
        >>> papers = Citations(torch.eye(3), nodes % 2, edges, nodes[:1], nodes[1:2], nodes[2:])
        >>> papers.y[papers.train], len(papers.edges)
        (tensor([0]), 2)
    """

    x: Tensor
    y: Tensor
    edges: Tensor
    train: Tensor
    valid: Tensor
    test: Tensor

    def __repr__(self) -> str:
        return in_a_line(self)


def planetoid(root: Folder, name: str = "Cora") -> Citations:
    """Returns a citation graph with the split of the Planetoid collection.

    Arguments:
        root: A folder with `Planetoid/Cora/raw/ind.cora.x` and so on, as torch_geometric has it.
        name: `"Cora"`, `"CiteSeer"` or `"PubMed"`.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is no pickle, or has anything in it but arrays; nothing of it has
            been executed then.

    Example:
        >>> papers = planetoid("data", "Cora")  # doctest: +SKIP
        >>> papers.x.shape, papers.edges.shape  # doctest: +SKIP
        (torch.Size([2708, 1433]), torch.Size([5278, 2]))
    """
    folder = Path(root).expanduser() / "Planetoid" / name / "raw"
    files = {part: folder / f"ind.{name.lower()}.{part}" for part in (*PARTS, "test.index")}
    if missing := [str(file) for file in files.values() if not file.is_file()]:
        raise FileNotFoundError(
            f"planetoid: expected the files of {name}, found no {', '.join(missing)}. Try fetching "
            f"them from github.com/kimiyoung/planetoid, folder data."
        )
    try:
        found = {part: read_arrays(files[part]) for part in PARTS}
        order = np.loadtxt(files["test.index"], dtype=np.int64)
        return _assembled(found, order)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: expected the files of a citation graph, but {error}. Try fetching them "
            f"again."
        ) from error


def read_arrays(file: Path) -> Any:
    """Returns what is pickled in a file: arrays, sparse matrices, lists, and no more.

    Raises:
        ValueError: If it is no pickle, or names anything else, which is not executed.
    """
    try:
        with open(file, "rb") as stream:
            return _ArraysOnly(stream, encoding="latin1").load()
    except (pickle.UnpicklingError, EOFError, UnicodeDecodeError, ImportError) as error:
        raise ValueError(
            f"{file}: expected a pickle of arrays, but {error}. Nothing of it was executed. Try "
            f"fetching the file again."
        ) from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"{file}: expected a whole pickle of arrays, but {error}. Try fetching the file again."
        ) from error


class _ArraysOnly(pickle.Unpickler):
    """Finds the names that arrays of NumPy and sparse matrices need, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        from scipy.sparse import csr_matrix  # here, because it is slow to import

        rebuild = np.empty(0).__reduce__()[0]  # where this NumPy keeps it
        known = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): rebuild,
            ("numpy._core.multiarray", "_reconstruct"): rebuild,
            ("scipy.sparse.csr", "csr_matrix"): csr_matrix,
            ("scipy.sparse._csr", "csr_matrix"): csr_matrix,
            ("collections", "defaultdict"): defaultdict,
            ("__builtin__", "list"): list,
            ("builtins", "list"): list,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside of the file")


def _assembled(found: dict[str, Any], order: np.ndarray) -> Citations:
    """The parts of the files as one graph; test papers are in an order of their own."""
    count = max(len(found["graph"]), int(order.max()) + 1)
    known, train = found["allx"].shape[0], found["x"].shape[0]
    x = np.zeros((count, found["allx"].shape[1]), dtype=np.float32)
    x[:known], x[order] = found["allx"].toarray(), found["tx"].toarray()
    fields = np.zeros((count, found["ally"].shape[1]))
    fields[:known], fields[order] = found["ally"], found["ty"]
    y = np.where(fields.any(1), fields.argmax(1), -1)
    pairs = {
        (min(i, j), max(i, j)) for i, others in found["graph"].items() for j in others if i != j
    }
    return Citations(
        torch.from_numpy(x),
        torch.from_numpy(y),
        torch.tensor(sorted(pairs)),
        torch.arange(train),
        torch.arange(train, train + NUM_VALID),
        torch.from_numpy(np.sort(order)),
    )
