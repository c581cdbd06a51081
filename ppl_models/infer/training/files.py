"""Files: safetensors with a JSON header, written whole or not at all, never unpickled.

The tensors of a nested structure go into the body of a safetensors file, all else as JSON into
its header. A file is written beside its name, flushed to the disk, and then renamed, so that a
crash at any moment leaves either the old file or the new one.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ppl_models.infer.programs.own import make_own, own_parameters
from ppl_models.processes import Processes

_FORMAT = "ppl_models"


def save(path: str | Path, **modules: nn.Module) -> None:
    """Writes the weights of modules to one safetensors file, under the names given.

    Example:
        >>> import tempfile
        >>> layer, copy = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/weights.safetensors", layer=layer)
        ...     load(f"{folder}/weights.safetensors", layer=copy)
        >>> torch.equal(layer.weight, copy.weight)
        True
    """
    tree = {name: module_tensors(_module(name, module)) for name, module in modules.items()}
    write(path, {"kind": "weights", "modules": tree})


def load(path: str | Path, **modules: nn.Module) -> None:
    """Fills the modules given with weights that `save` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is truncated, foreign, or of other modules.

    Example:
        >>> load("not-there.safetensors", layer=torch.nn.Linear(3, 2))
        Traceback (most recent call last):
        ...
        FileNotFoundError: ...
    """
    tree = read(path)
    if tree.get("kind") != "weights":
        raise ValueError(
            f"{path}: expected weights, as written by save(), got a {tree.get('kind')}. "
            f"Try fit(..., checkpoint={str(path)!r}, resume=True)."
        )
    for name, module in modules.items():
        if name not in tree["modules"]:
            raise ValueError(
                f"{path}: it has no {name!r}; it has {', '.join(map(repr, tree['modules']))}."
            )
        targets = module_tensors(_module(name, module))
        check_tensors_match(f"{path}: {name}", tree["modules"][name], targets)
    for name, module in modules.items():
        make_own(module)
        fill(module_tensors(module), tree["modules"][name])


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The live tensors of a module: its state, and what `pyro.param` created in its `forward`."""
    state = module.state_dict(keep_vars=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors | {f"pyro.param {k}": v for k, v in own_parameters(module).items()}


@torch.no_grad()
def fill(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copies values into live tensors, in place."""
    for name, target in targets.items():
        held(target).copy_(held(values[name]))


def held(x: Tensor) -> Tensor:
    """What is here of a tensor that may be split over processes."""
    return x.to_local() if hasattr(x, "to_local") else x


def check_tensors_match(where: str, got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises a ValueError that says which keys and which shapes differ."""
    problems = []
    if missing := sorted(set(expected) - set(got)):
        problems.append(f"it lacks {_some(missing)}")
    if extra := sorted(set(got) - set(expected)):
        problems.append(f"it has {_some(extra)}, unknown here")
    for name in sorted(set(got) & set(expected)):
        if got[name].shape != expected[name].shape:
            problems.append(
                f"{name} has shape {tuple(got[name].shape)}, expected {tuple(expected[name].shape)}"
            )
    if problems:
        hint = _hint(extra, bool(expected))
        raise ValueError(f"{where}: another model's: {'; '.join(problems[:5])}. {hint}")


def _hint(extra: list[str], has_some: bool) -> str:
    """What to try where a file has tensors that a module has not."""
    if extra and all(name.startswith("pyro.param ") for name in extra):
        return (
            "What pyro.param makes is not there before a guide has run: try "
            "elbo(model, guide).loss(*batch) once."
        )
    if extra and not has_some:
        return "An autoguide has no parameters before its first call: try guide(*batch) once."
    return "Try the model and the guide that it was written for."


def write(path: str | Path, tree: dict[str, Any]) -> None:
    """Writes a nested structure of dicts, lists, tensors and JSON values, atomically."""
    tensors: dict[str, Tensor] = {}
    header = json.dumps(_pack(tree, "", tensors))
    body = to_bytes(tensors, metadata={"format": _FORMAT, "tree": header})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
    except OSError:  # a full disk: what was there before stays, and the rest makes room
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def check_can_hold(state: Any) -> None:
    """Raises a TypeError where the state of a loader is nothing that a checkpoint can hold."""
    _pack({"the state of the DataLoader": state}, "", {})


def read_by_first(path: str | Path, processes: Processes) -> dict[str, Any] | None:
    """Reads what `write` wrote, where the first process finds it, on all processes; else None."""
    content, path = b"", Path(path)
    with processes.all_or_none(f"reading the checkpoint {path}"):
        if processes.is_first and path.exists():
            found = read(path)
            if processes.alone:
                return found
            content = path.read_bytes()
    content = processes.from_first(content)
    return _parsed(content) if content else None


def _parsed(content: bytes) -> dict[str, Any]:
    """What the bytes of a file hold that was read before."""
    end = 8 + int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8:end])["__metadata__"]
    return _unpack(json.loads(metadata["tree"]), from_bytes(content))


def read(path: str | Path) -> dict[str, Any]:
    """Reads what `write` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, not of this library, or a pickle, which is not opened.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with any eight bytes, a length, and then a brace.
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise ValueError(
            f"{path}: this is a pickle or an archive of torch.save, which can run any code when "
            f"opened, and was not opened. Expected a safetensors file, as written by "
            f"ppl_models.save or fit(checkpoint=...)."
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(
                    f"{path}: a safetensors file, but not one of ppl_models. Try "
                    f"safetensors.torch.load_file and module.load_state_dict."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except SafetensorError as error:
        raise ValueError(
            f"{path}: truncated or not a safetensors file ({error}). Try an earlier checkpoint."
        ) from None
    return _unpack(json.loads(metadata["tree"]), tensors)


def _pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        # A copy of its own: safetensors refuses tensors that share memory, as tied weights do.
        tensors[where] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": where}
    if isinstance(value, dict):
        items = [[k, _pack(v, f"{where}/{k}", tensors)] for k, v in value.items()]
        return {"dict": items}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(v, f"{where}/{i}", tensors) for i, v in enumerate(value)]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"checkpoint: cannot write {where} of type {type(value).__name__}; expected tensors, "
        f"numbers, strings, and dicts and lists of them."
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {k: _unpack(v, tensors) for k, v in content}
    items = [_unpack(v, tensors) for v in content]
    return items if kind == "list" else tuple(items)


def _module(name: str, module: Any) -> nn.Module:
    if not isinstance(module, nn.Module):
        kind = module.__name__ if isinstance(module, type) else type(module).__name__
        hint = f"an object, {kind}(...)"
        if not isinstance(module, type):
            hint = (
                f"the guide or the network in its place: a {kind} has no weights of its own (those "
                f"of pyro.param in a function are in Pyro's store, pyro.get_param_store().save)"
            )
        got = f"the class {kind}" if isinstance(module, type) else kind
        raise TypeError(f"{name}: expected a module, got {got}. Try {hint}.")
    return module


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
