"""What a trace holds fast: all that a program keeps outside of its tensors, and which tensors.

A graph of tensor operations has the numbers of a program written into it: those in its attributes,
its closure, its globals, in the lists and objects that it holds and in the functions that it calls.
They are found once, and looked at before each use of the graph.
"""

import argparse
import functools
import sys
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import is_
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_models.infer.programs.program import Program, own_parameters
from ppl_models.infer.programs.pyro_internals import stored

SCALARS = (bool, int, float, complex, str, type(None))
LONG = 100  # entries of a container, beyond which they are looked at in one go
MOST = 10_000  # beyond which only their number is watched
LIBRARIES = ("torch", "pyro", "ppl_models", "guides", *sys.stdlib_module_names)
NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
INSTALLED = str(Path(torch.__file__).parents[1])
ENTRIES = {"forward", "__call__"}  # methods that are called without their name
INTERNAL = frozenset(vars(nn.Module()))  # how torch keeps what a module has

Watch = list[tuple[Callable[[], Any], Any]]


def holds(watch: Watch) -> bool:
    """Whether all that was found is still what it was."""
    for now, before in watch:
        value = now()
        if value is not before and not (
            type(value) is type(before) and isinstance(before, SCALARS) and value == before
        ):
            return False
    return True


class Finder:
    """Finds what an objective holds: `watch`, the `modules` and the other `tensors` it reaches.

    Arguments:
        objective: What is traced, with programs among its attributes.
    """

    def __init__(self, objective: Any) -> None:
        self._names: set[str] = set()  # that the functions found so far look up
        known = -1
        while len(self._names) > known:  # names found late matter for objects seen early
            known = len(self._names)
            self.watch: Watch = []
            self.modules: list[nn.Module] = []
            self.tensors: list[Tensor] = []
            self._seen: dict[int, Any] = {}  # kept, so that no other object gets the same id
            self._find(objective)

    def _find(self, objective: Any) -> None:
        self._scalars(vars(objective))
        for root in objective.modules().values():
            self._visit(root)
        for part in vars(objective).values():
            for program in part if isinstance(part, tuple) else (part,):
                if isinstance(program, Program):
                    self._visit(program.program)
                    if program.owner is None:
                        self._stored(program.found)
            if hasattr(part, "num_particles"):  # an estimator
                self._scalars(vars(part))
        self._stored(getattr(objective, "stored", {}))

    def buffers(self) -> list[Tensor]:
        """The buffers of the modules."""
        return [b for m in self.modules for b in m._buffers.values() if b is not None]

    def _note(self, now: Callable[[], Any], value: Any) -> None:
        self.watch.append((now, value))
        self._visit(value)

    def _scalars(self, mapping: Mapping[str, Any]) -> None:
        for name, value in mapping.items():
            if isinstance(value, SCALARS):
                self.watch.append((partial(mapping.get, name), value))

    def _all(self, mapping: Mapping[Any, Any], names: Iterable[Any]) -> None:
        for name in names:
            self._note(partial(mapping.get, name), mapping[name])

    def _stored(self, names: Iterable[str]) -> None:
        """Parameters in Pyro's store, whose dict is another one after a while."""
        for name in names:
            self._note(partial(stored, name), stored(name))

    def _visit(self, value: Any) -> None:
        if isinstance(value, SCALARS) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            if not value.requires_grad:
                self.tensors.append(value)
            self.watch.append((partial(getattr, value, "requires_grad"), value.requires_grad))
        elif isinstance(value, types.ModuleType):
            if not _of_library(value):
                self._all(vars(value), self._names & vars(value).keys())
        elif isinstance(value, type):
            if not _of_library(value):
                self._class(value)
        elif isinstance(value, nn.Module):
            self._module(value)
        elif isinstance(value, Mapping):
            self.watch.append((value.__len__, len(value)))
            if len(value) <= LONG:
                self._all(value, list(value))
            elif len(value) <= MOST:
                self._long(value.values, list(value.values()))
        elif isinstance(value, (list, deque)):
            self.watch.append((value.__len__, len(value)))
            if len(value) <= LONG:
                for n, entry in enumerate(value):
                    self._note(partial(_entry, value, n), entry)
            elif len(value) <= MOST:
                self._long(partial(iter, value), list(value))
        elif isinstance(value, tuple):
            for entry in value[:LONG]:
                self._visit(entry)
        elif isinstance(value, (set, frozenset)):
            self._long(value.__iter__, list(value))
        elif isinstance(value, np.ndarray):
            if value.size <= MOST:
                self.watch.append((partial(_unchanged, value, value.tobytes()), True))
        elif isinstance(value, types.FunctionType):
            self._function(value)
        elif isinstance(value, types.MethodType):
            self._visit(value.__func__)
            self._visit(value.__self__)
        elif isinstance(value, partial):
            for entry in (value.func, value.args, value.keywords):
                self._visit(entry)
        elif not _of_library(type(value)) or isinstance(value, NAMESPACES):
            own = getattr(value, "__dict__", {})
            used = self._class(type(value), own)
            self._all(own, [name for name in own if name in used])
            for name in used & _slots(type(value)):
                self._note(partial(getattr, value, name, None), getattr(value, name, None))
        elif hasattr(value, "__dict__"):
            self._scalars(vars(value))

    def _long(self, entries: Callable[[], Iterable[Any]], before: list[Any]) -> None:
        """Many entries at once: a call for each would take longer than a step."""
        same = _equal if all(isinstance(entry, SCALARS) for entry in before) else _identical
        self.watch.append((partial(same, entries, before), True))
        for entry in before[:LONG]:
            self._visit(entry)

    def _module(self, module: nn.Module) -> None:
        self.modules.append(module)
        for mapping in (module._parameters, module._buffers, module._modules):
            self._all(mapping, list(mapping))
        own = vars(module)
        self._scalars(own)
        self._all(own.get("_pyro_samples", {}), own.get("_pyro_samples", {}))
        if not _of_library(type(module)):
            used = self._class(type(module), own) - INTERNAL
            kept = [n for n in own if n in used and not n.startswith("_pyro")]
            self._all(own, [n for n in kept if not isinstance(own[n], SCALARS)])
        self._all(own_parameters(module), own_parameters(module))

    def _class(self, kind: type, instance: Mapping[str, Any] | None = None) -> set[str]:
        """Visits the methods that are used and the values of a class; returns all names used.

        Others, such as a list of losses that a training loop keeps, may change as they like. A
        value of the class is watched in the `instance`, too, which may get one of its own.
        """
        own = [vars(each) for each in kind.__mro__ if not _of_library(each)]
        done: set[str] = set()
        while new := {n for m in own for n in m if n in self._names | ENTRIES} - done:
            done |= new
            for mapping in own:
                for name in new & mapping.keys():
                    method = mapping[name]
                    method = method.fget if isinstance(method, property) else method
                    method = getattr(method, "__func__", method)  # of a class or static method
                    self._visit(method if callable(method) else None)
        for mapping in own:
            for name in self._names & mapping.keys():
                if not callable(mapping[name]) and not hasattr(mapping[name], "__get__"):
                    self._note(partial(mapping.get, name), mapping[name])
                    if instance is not None and name not in instance:
                        self.watch.append((partial(instance.get, name), None))
        return self._names

    def _function(self, function: types.FunctionType) -> None:
        self._names |= _names(function.__code__)
        for cell in function.__closure__ or ():
            if (value := _content(cell)) is not cell:
                self._note(partial(_content, cell), value)
        if _of_library(function):
            return
        self._visit(function.__defaults__)
        self._visit(function.__kwdefaults__)
        self._visit(getattr(function, "__wrapped__", None))
        scope = function.__globals__
        self._all(scope, _names(function.__code__) & scope.keys())


def _unchanged(array: np.ndarray, before: bytes) -> bool:
    return array.tobytes() == before


def _slots(kind: type) -> set[str]:
    return {n for each in kind.__mro__ for n in _listed(vars(each).get("__slots__", ()))}


def _listed(names: Any) -> Iterable[str]:
    return (names,) if isinstance(names, str) else names


def _entry(values: Any, n: int) -> Any:
    return values[n] if n < len(values) else values


def _equal(entries: Callable[[], Iterable[Any]], before: list[Any]) -> bool:
    """Whether numbers are what they were: a nanosecond or two for each."""
    return list(entries()) == before


def _identical(entries: Callable[[], Iterable[Any]], before: list[Any]) -> bool:
    now = list(entries())
    return len(now) == len(before) and all(map(is_, now, before))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty so far
        return cell


def _names(code: types.CodeType) -> set[str]:
    """The names that a function and those within it look up."""
    inner = (_names(c) for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*inner)


@functools.cache
def _library(name: str) -> bool:
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return name.split(".")[0] in LIBRARIES or file.startswith(INSTALLED)


def _of_library(value: Any) -> bool:
    """Whether a class, function or module is torch's, Pyro's or another library's."""
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return name != "__main__" and _library(name or "builtins")
