"""What a trace holds fast: all that a program keeps outside of its tensors, and which tensors.

A graph of tensor operations has the numbers of a program written into it: those in its attributes,
its closure, its globals, in the lists and objects that it holds and in the functions that it calls.
They are found once, and looked at before each use of the graph.
"""

import argparse
import array
import contextvars
import ctypes
import functools
import os
import random
import sys
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from operator import is_, setitem
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ppl_models.infer.programs.own import own_parameters
from ppl_models.infer.programs.program import Program
from ppl_models.infer.programs.pyro_internals import stored

SCALARS = (bool, int, float, complex, str, type(None))
LONG = 100  # entries of a container, beyond which they are looked at in one go
MOST = 10_000  # beyond which only their number is watched
LIBRARIES = {"torch", "pyro", "ppl_models", "guides", *sys.stdlib_module_names}
LIBRARIES |= {"numpy", "scipy", "pandas", "sklearn", "torchvision", "zuko", "matplotlib", "tqdm"}
NAMESPACES = (types.SimpleNamespace, argparse.Namespace, threading.local)
VALUES = (*SCALARS, Tensor, np.ndarray)  # what is watched of a library's own
ENVIRONMENT = {"environ", "environb", "getenv"}
# Methods that are called without their name: `forward`, and those of Python but for these.
UNUSED = {"__init__", "__new__", "__del__", "__repr__", "__getstate__", "__setstate__"}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
BY_NAME = {"getattr", "setattr", "vars", "__dict__"}  # which reach attributes without their name
INTERNAL = frozenset(vars(nn.Module()))  # how torch keeps what a module has

GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)

Watch = list[tuple[Callable[[], Any], Any]]


def holds(watch: Iterable[tuple[Callable[[], Any], Any]]) -> bool:
    """Whether all that was found is still what it was."""
    return all(is_same(now(), before) for now, before in watch)


def is_same(value: Any, before: Any) -> bool:
    """Whether what was found is still what it was."""
    return value is before or (
        type(value) is type(before) and isinstance(before, SCALARS) and value == before
    )


class Spot(NamedTuple):
    """Where a program keeps a number, which another can take."""

    key: Hashable
    get: Callable[[], Any]
    put: Callable[[Any], None]


def spot_of(now: Callable[[], Any]) -> Spot | None:
    """Where what was found is kept; None where nothing else can be put there."""
    if not isinstance(now, partial):
        return None
    if now.func is _content:
        (cell,) = now.args
        return Spot(id(cell), now, partial(setattr, cell, "cell_contents"))
    owner = now.args[0] if now.func is _entry else getattr(now.func, "__self__", None)
    if isinstance(owner, (dict, list)) and now.args:
        return Spot((id(owner), now.args[-1]), now, partial(setitem, owner, now.args[-1]))
    return None


@contextmanager
def as_it_was(watch: Watch) -> Iterator[None]:
    """A context in which numbers are what they were, where others were put in their place."""
    put = []
    for now, before in watch:
        value, spot = now(), spot_of(now)
        if spot is not None and isinstance(before, SCALARS) and not is_same(value, before):
            put.append((spot, value))
            spot.put(before)
    try:
        yield
    finally:
        for spot, value in put:
            spot.put(value)


class Finder:
    """Finds what an objective holds: `watch`, the `modules` and the other `tensors` it reaches.

    Arguments:
        objective: What is traced, with programs among its attributes.
        stored: The names of parameters in Pyro's store that it reads, besides those that its
            programs have found there.
    """

    def __init__(self, objective: Any, stored: Collection[str] = ()) -> None:
        self._names: set[str] = set()  # that the functions found so far look up
        self._by_name = False  # whether one reaches attributes by other ways than their names
        known = -1
        while len(self._names) + self._by_name > known:  # what is found late matters for the early
            known = len(self._names) + self._by_name
            self.watch: Watch = []
            self.modules: list[nn.Module] = []
            self.tensors: list[Tensor] = []
            self.too_long: str | None = None  # why it would take too long to look at all, if so
            self.moving: str | None = None  # what moves on when it is read, if so
            self._seen: dict[int, Any] = {}  # kept, so that no other object gets the same id
            self._find(objective)
            self._stored(stored)
        if self._names & ENVIRONMENT:
            self.watch.append((partial(_is_equal, os.environ, dict(os.environ)), True))

    def _find(self, objective: Any) -> None:
        own = vars(objective)
        self._scalars(own)
        self._scalars(own.get("numbers", {}))  # among the arguments
        self._all(own, [n for n, x in own.items() if isinstance(x, (Tensor, np.ndarray))])
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
        for kind, look in LOOKS:
            if isinstance(value, kind):
                look(self, value)
                return
        self._object(value)

    def _tensor(self, tensor: Tensor) -> None:
        if not tensor.requires_grad:
            self.tensors.append(tensor)
        self.watch.append((partial(getattr, tensor, "requires_grad"), tensor.requires_grad))

    def _namespace(self, module: types.ModuleType) -> None:
        own = vars(module)
        named = self._names & own.keys()
        if of_library(module):
            named = {n for n in named if isinstance(own[n], VALUES)}
        self._all(own, named)

    def _own_class(self, kind: type) -> None:
        if not of_library(kind):
            self._class(kind)

    def _mapping(self, mapping: Mapping[Any, Any]) -> None:
        self.watch.append((mapping.__len__, len(mapping)))
        if len(mapping) <= LONG:
            self._all(mapping, list(mapping))
        elif len(mapping) <= MOST:
            self._long(mapping.values, list(mapping.values()))
        else:
            self._say_too_long(mapping)

    def _list(self, values: list[Any] | deque[Any]) -> None:
        self.watch.append((values.__len__, len(values)))
        if len(values) <= LONG:
            for n, entry in enumerate(values):
                self._note(partial(_entry, values, n), entry)
        elif len(values) <= MOST:
            self._long(partial(iter, values), list(values))
        else:
            self._say_too_long(values)

    def _say_too_long(self, values: Any) -> None:
        kind = type(values).__name__
        self.too_long = f"it holds a {kind} of {len(values)} entries, which may change unseen"

    def _tuple(self, values: tuple[Any, ...]) -> None:
        for entry in values[:LONG]:
            self._visit(entry)

    def _set(self, values: set[Any] | frozenset[Any]) -> None:
        self._long(values.__iter__, list(values))

    def _array(self, values: Any) -> None:
        view = values if isinstance(values, np.ndarray) else memoryview(values)
        if view.nbytes <= 8 * MOST:
            self.watch.append((partial(_unchanged, view, view.tobytes()), True))
        else:
            self._say_too_long(values)

    def _reference(self, reference: weakref.ref[Any]) -> None:
        self._visit(reference())

    def _iterator(self, value: Any) -> None:
        kind = type(value).__name__
        self.moving = f"it holds a {kind}, of which code would hold the next value fast"

    def _variable(self, variable: contextvars.ContextVar[Any]) -> None:
        self._note(partial(variable.get, None), variable.get(None))

    def _wrapped(self, function: Any) -> None:
        self._visit(function.__wrapped__)

    def _method(self, method: types.MethodType) -> None:
        self._visit(method.__func__)
        self._visit(method.__self__)

    def _bound(self, method: Any) -> None:
        """A method of a class that is not Python's own, such as `generator.random`."""
        if not isinstance(method.__self__, types.ModuleType):
            self._visit(method.__self__)

    def _partial(self, function: partial[Any]) -> None:
        for entry in (function.func, function.args, function.keywords):
            self._visit(entry)

    def _object(self, value: Any) -> None:
        """What is of no other kind: of a library's own the numbers alone."""
        own = getattr(value, "__dict__", {})
        if of_library(type(value)) and not isinstance(value, NAMESPACES):
            self._scalars(own)
            if hasattr(type(value), "__array__"):
                self._table(value)
            return
        used, slots = self._class(type(value), own), _slots(type(value))
        used = used | slots | own.keys() if self._by_name else used
        self._all(own, [name for name in own if name in used])
        for name in used & slots:
            self._note(partial(getattr, value, name, None), getattr(value, name, None))

    def _table(self, table: Any) -> None:
        """What can be read as an array, such as a table of pandas."""
        values = np.asarray(table)
        if values.dtype.kind in "biufc" and values.nbytes <= 8 * MOST:
            now = partial(_same_table, table, values.tobytes())
            self.watch.append((now, True))

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
        self._hooks(own)
        tensors = [n for n, value in own.items() if isinstance(value, (Tensor, np.ndarray))]
        self._all(own, [n for n in tensors if not n.startswith("_")])  # those are its caches
        self._all(own.get("_pyro_samples", {}), own.get("_pyro_samples", {}))
        if not of_library(type(module)):
            used = self._class(type(module), own) - INTERNAL
            kept = [n for n in own if n in used and not n.startswith("_pyro")]
            self._all(own, [n for n in kept if not isinstance(own[n], SCALARS)])
        self._all(own_parameters(module), own_parameters(module))

    def _hooks(self, own: Mapping[str, Any]) -> None:
        """Those of a module, and of all modules: a graph has what they do when a module runs."""
        for name in HOOKS:
            for hooks in (own.get(name, {}), getattr(nn.modules.module, f"_global{name}")):
                self.watch.append((hooks.__len__, len(hooks)))
                if hooks and "backward" in name:
                    self.moving = "a module has a hook of its gradient, of which a graph knows none"
                self._all(hooks, list(hooks))

    def _class(self, kind: type, instance: Mapping[str, Any] | None = None) -> set[str]:
        """Visits the methods that are used and the values of a class; returns all names used.

        Others, such as a list of losses that a training loop keeps, may change as they like. A
        value of the class is watched in the `instance`, too, which may get one of its own.
        """
        own = [vars(each) for each in kind.__mro__ if not of_library(each)]
        done: set[str] = set()
        while new := {n for m in own for n in m if n in self._names or _is_entry(n)} - done:
            done |= new
            for mapping in own:
                for name in new & mapping.keys():
                    method = mapping[name]
                    method = method.fget if isinstance(method, property) else method
                    method = getattr(method, "__func__", method)  # of a class or static method
                    method = getattr(method, "func", method)  # of a cached property
                    used = callable(method) or hasattr(method, "__get__")
                    self._visit(method if used else None)
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
        if of_library(function):
            return
        self._by_name = self._by_name or bool(_names(function.__code__) & BY_NAME)
        self._visit(function.__defaults__)
        self._visit(function.__kwdefaults__)
        self._visit(getattr(function, "__wrapped__", None))
        self._all(vars(function), vars(function))
        scope = function.__globals__
        if "globals" in function.__code__.co_names:
            self._scalars(scope)
        self._all(scope, _names(function.__code__) & scope.keys())


# How each kind of value is looked at; the first kind counts that it is of.
LOOKS: tuple[tuple[Any, Callable[[Finder, Any], None]], ...] = (
    (Tensor, Finder._tensor),
    (types.ModuleType, Finder._namespace),
    (type, Finder._own_class),
    (nn.Module, Finder._module),
    (Mapping, Finder._mapping),
    ((list, deque), Finder._list),
    (tuple, Finder._tuple),
    ((set, frozenset), Finder._set),
    ((np.ndarray, bytearray, array.array, memoryview, ctypes.Array), Finder._array),
    (weakref.ref, Finder._reference),
    (types.FunctionType, Finder._function),
    (types.MethodType, Finder._method),
    ((types.BuiltinMethodType, types.MethodWrapperType), Finder._bound),
    (partial, Finder._partial),
    (contextvars.ContextVar, Finder._variable),
    (type(functools.lru_cache(len)), Finder._wrapped),
    ((Iterator, *GENERATORS), Finder._iterator),
)


def _is_entry(name: str) -> bool:
    return name == "forward" or (name.startswith("__") and name not in UNUSED)


def _is_equal(mapping: Mapping[Any, Any], before: dict[Any, Any]) -> bool:
    return dict(mapping) == before


def _unchanged(array: Any, before: bytes) -> bool:
    return array.tobytes() == before


def _same_table(table: Any, before: bytes) -> bool:
    return np.asarray(table).tobytes() == before


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


def of_library(value: Any) -> bool:
    """Whether a class, function or module is torch's, Pyro's or another library's."""
    name = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    return (name or "builtins").split(".")[0] in LIBRARIES
