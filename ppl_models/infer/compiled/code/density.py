r"""A density and its gradient as a C function, for samplers that call it from threads of their own.

The function has the form `int64(uint64 D, double* position, double* gradient, double* value,
void* room)`, zero where it went well. Code from Inductor writes into tensors; each call takes a
set of these that no other uses, so that several threads may call it at once. The code gives the
interpreter's lock back while it runs: it is held for a microsecond before and after.
"""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from ppl_models.infer.compiled.code.native import MOST, Native, handles_of, new_handle

SOURCE = r"""
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>

typedef void* Handle;
extern "C" int PyGILState_Ensure(void);
extern "C" void PyGILState_Release(int);

struct Room {
  std::atomic<int> busy;
  double *position, *gradient, *value, *latents;
  Handle* given;
};
struct Rooms {
  void (*entry)(Handle*, Handle*);
  int32_t (*again)(Handle, Handle*);
  int64_t count, number;
  Room* rooms;
};

static Room* take(Rooms* all) {
  for (;;)
    for (int64_t i = 0; i < all->number; ++i) {
      int free = 0;
      if (all->rooms[i].busy.compare_exchange_strong(free, 1)) return &all->rooms[i];
    }
}

static bool run(Rooms* all, Room* room, uint64_t size, const double* position) {
  Handle handles[MOST], none[1];
  bool good = true;
  std::memcpy(room->position, position, size * sizeof(double));
  for (int64_t i = 0; i < all->count; ++i) all->again(room->given[i], &handles[i]);
  int lock = PyGILState_Ensure();
  try { all->entry(handles, none); } catch (const std::exception&) { good = false; }
  PyGILState_Release(lock);
  return good;
}

// What a sampler may go on after, as from a step too long, is more than zero.
extern "C" int64_t density(uint64_t size, const double* position, double* gradient, double* value,
                           void* rooms) {
  Rooms* all = static_cast<Rooms*>(rooms);
  Room* room = take(all);
  int64_t code = run(all, room, size, position) ? 0 : 1;
  if (!code) {
    std::memcpy(gradient, room->gradient, size * sizeof(double));
    *value = *room->value;
    if (!std::isfinite(*value)) code = 2;
    for (uint64_t i = 0; i < size && !code; ++i) if (!std::isfinite(gradient[i])) code = 3;
  }
  room->busy.store(0);
  return code;
}

extern "C" int64_t latents(uint64_t size, uint64_t count, const double* position, double* result,
                           void* rooms) {
  Rooms* all = static_cast<Rooms*>(rooms);
  Room* room = take(all);
  bool good = run(all, room, size, position);
  if (good) std::memcpy(result, room->latents, count * sizeof(double));
  room->busy.store(0);
  return good ? 0 : -1;
}
"""


class _Room(ctypes.Structure):
    _fields_ = [
        ("busy", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("position", "gradient", "value", "latents")),
        ("given", ctypes.c_void_p),
    ]


class _Rooms(ctypes.Structure):
    _fields_ = [
        ("entry", ctypes.c_void_p),
        ("again", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("number", ctypes.c_int64),
        ("rooms", ctypes.c_void_p),
    ]


class NativeDensity:
    """A compiled graph that writes value, gradient and latents at a position.

    Arguments:
        graph: Operations on `position`, `gradient`, `value`, `latents`, and what else it reads.
        inputs: These tensors, all in double precision; the first four are written into.
        threads: How many may call it at once.
    """

    def __init__(self, graph: GraphModule, inputs: Sequence[Tensor], threads: int) -> None:
        self.inputs = list(inputs)
        self.native = Native(graph, inputs)
        self.native(1, inputs)
        entry = self.native.entry()
        if entry is None:
            raise RuntimeError("the code has no entry that can be called from C")
        self._kept: list[Any] = []
        rooms = (_Room * threads)()
        for room in rooms:
            own = [x.clone() for x in inputs[:4]] + list(inputs[4:])
            given = self.native.given(own)
            handles = handles_of(given)
            self._kept += [own, given, handles]
            room.position, room.gradient, room.value, room.latents = (x.data_ptr() for x in own[:4])
            room.given = ctypes.addressof(handles)
        self.rooms = _Rooms(
            entry.value, new_handle().value, len(given), threads, ctypes.addressof(rooms)
        )
        self._kept.append(rooms)

    def __call__(self, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Value, gradient and latents at a position."""
        own = [x.clone() for x in self.inputs]
        own[0].copy_(position)
        self.native(1, own)
        return own[2], own[1], own[3]

    @property
    def address(self) -> int:
        """Of what the functions take last."""
        return ctypes.addressof(self.rooms)

    @property
    def density(self) -> int:
        """The address of the function of the density and its gradient."""
        return _address("density")

    @property
    def latents(self) -> int:
        """The address of the function of the latents."""
        return _address("latents")


def _address(name: str) -> int:
    return ctypes.cast(getattr(_library(), name), ctypes.c_void_p).value or 0


@functools.cache
def _library() -> ctypes.CDLL:
    from torch._inductor.codecache import CppCodeCache

    built: Any = CppCodeCache.load(SOURCE.replace("MOST", str(MOST)))
    return ctypes.CDLL(built._name)
