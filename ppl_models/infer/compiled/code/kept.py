"""Which compiled code lies on disk, so that the next process has it without the compiler.

To find a graph in its own cache Inductor must be imported, and the graph taken through the first
half of a compilation: some two seconds. A graph is therefore also looked up by its text, the kinds
of its inputs, and all that code depends on besides. What is found is compared with the program like
code that was just made.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule


class Kept(NamedTuple):
    """Code on disk.

    Attributes:
        library: The file.
        places: Which inputs its entry takes, in its order, and which constants, by their names.
    """

    library: str
    places: list[int | str]


def key_of(graph: GraphModule, inputs: Sequence[Tensor], *settings: Any) -> str | None:
    """What the code for a graph depends on, as a name; None for a graph that is not only tensors.

    Arguments:
        graph: The graph.
        inputs: Tensors as it will be run on.
        settings: What else the code depends on.
    """
    constants = list(constants_of(graph).values())
    if not all(isinstance(x, Tensor) and x.is_cpu for x in (*constants, *inputs)):
        return None
    values = [hashlib.sha256(_bytes(x)).hexdigest() for x in constants]
    kinds = list(_kinds([*inputs, *constants]))
    return named(graph.code, values, kinds, *settings)


def constants_of(graph: GraphModule) -> dict[str, Any]:
    """What a graph holds by itself, by name."""
    names = [str(node.target) for node in graph.graph.find_nodes(op="get_attr")]
    return {name: getattr(graph, name, None) for name in names}


def named(*parts: Any) -> str:
    """A name for what is given, for this machine, this torch and its settings."""
    from torch._inductor import config

    around = (
        torch.__version__,
        torch.version.git_version,
        sorted(torch.cpu.get_capabilities().items()),
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled,
        os.environ.get("CXX"),
        config.get_hash(),
    )
    return hashlib.sha256(repr((around, parts)).encode()).hexdigest()


def _kinds(tensors: Sequence[Tensor]) -> Iterator[tuple[Any, ...]]:
    """Of each its kind, and where it lies in the memory of the first that shares it."""
    first: dict[int, int] = {}
    for n, x in enumerate(tensors):
        owner = first.setdefault(x.untyped_storage().data_ptr(), n) if x.numel() else n
        yield x.shape, x.stride(), x.dtype, x.requires_grad, owner, x.storage_offset()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def find(key: str | None) -> Kept | None:
    """The code of a name; None where there is none."""
    if key is None or not (path := _path(key)).exists():
        return None
    try:
        kept = Kept(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):  # written by another version
        return None
    return kept if Path(kept.library).exists() else None


def keep(key: str | None, library: str, places: Sequence[int | str]) -> None:
    """Takes note of code that was made."""
    if key is None:
        return
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(Kept(library, list(places))._asdict(), file)
        os.replace(file.name, path)
    except OSError:  # a disk that is full, or not to be written on
        return


def _path(key: str) -> Path:
    """Beside the files of Inductor, which may be thrown away together."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir()) / "ppl_models" / f"{key}.json"
