r"""A graph of tensor operations as machine code that runs many times in one call.

Inductor compiles a graph to C++ with one entry, `void(tensors in, tensors out)`. What the graph
keeps from one run to the next it writes into its inputs, so that a loop in C++ that calls the entry
is all that a training run needs: between two steps there is no Python, no allocation of arguments
and no lookup. A draw is a call of torch's own generator, in the order of the program, so that the
random numbers are those that the program draws when it runs by itself.
"""

import ctypes
import functools
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from ppl_models.infer.compiled.code import kept
from ppl_models.infer.compiled.code.products import SHIMS_OF_LARGE, SHIMS_OF_MIDDLE
from ppl_models.infer.compiled.code.solves import SHIMS_OF_SOLVE

OPTIONS = {
    "cpp_wrapper": True,
    "fallback_random": True,  # torch's random numbers, in the program's order
    "size_asserts": False,  # of inputs whose sizes are looked at before each call
    "alignment_asserts": False,
}
MOST = 4096  # tensors that the driver takes
SHIMS = (SHIMS_OF_LARGE, SHIMS_OF_MIDDLE, SHIMS_OF_SOLVE)
ENTRY = "_Z19inductor_entry_implPP16AtenTensorOpaqueS1_"
# Vectors with which Inductor multiplies small integers alone; trying them takes a second.
UNUSED = ("vnni", "amx")
# Which tell users of a CUDA that is not there, and of operations that are called another way.
TALKATIVE = ("torch.utils.cpp_extension", "torch._inductor.ir")
DRIVER = r"""
#include <cstdint>
#include <cstring>
#include <exception>

typedef void* Handle;

// Runs an entry a number of times on the same tensors; returns how often it came to its end.
extern "C" int64_t repeat(void (*entry)(Handle*, Handle*), int32_t (*again)(Handle, Handle*),
                          int64_t times, Handle* inputs, int64_t count,
                          char* message, int64_t room) {
  Handle handles[MOST], none[1];
  int64_t done = 0;
  try {
    for (; done < times; ++done) {
      for (int64_t i = 0; i < count; ++i) again(inputs[i], &handles[i]);  // an entry takes them
      entry(handles, none);
    }
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), room - 1);
  }
  return done;
}
"""


class Shims(dict[torch._ops.OpOverload, list[str]]):
    """How Inductor is to call the project's own operations, in a form that its cache takes."""

    def __init__(self) -> None:
        ops = torch.ops.ppl_models
        super().__init__(
            {
                ops.large_product.default: SHIMS_OF_LARGE,
                ops.middle_product.default: SHIMS_OF_MIDDLE,
                ops.small_solve.default: SHIMS_OF_SOLVE,
            }
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # With what the code is made for, which torch's key leaves out.
        return str, (str([torch.backends.cpu.get_cpu_capability(), *self.values()]),)


class Native:
    """A compiled graph without outputs, to be run many times on the same tensors.

    Arguments:
        graph: Operations on tensors, some of which it writes into; it returns nothing.
        inputs: The tensors that it is first run on.
    """

    def __init__(self, graph: GraphModule, inputs: Sequence[Tensor]) -> None:
        if len(inputs) > MOST // 2:
            raise ValueError(f"expected at most {MOST // 2} tensors, got {len(inputs)}")
        self._given: list[Tensor] = []
        self._places: list[int | Tensor] = []  # what the entry takes: inputs, and constants
        self._compiled: Any = None
        self._address: Any = None
        self._key = kept.key_of(graph, inputs, OPTIONS, SHIMS, ENTRY)
        found = kept.find(self._key)
        if found is not None:
            self._places = list(found.places)
            self._load(found.library)
            return
        self._call = _compile(graph, inputs, self)

    def __call__(self, times: int, inputs: Sequence[Tensor]) -> None:
        """Runs it so many times.

        Arguments:
            times: How often, one or more.
            inputs: The tensors, each with the shape and strides that it had first.
        """
        if not (self._places or self._address):  # what the entry takes shows when it is called
            self._call(*inputs)
            self._places = [_place(x, inputs) for x in self._given]
            self._given.clear()
            self._keep()
            times -= 1
        entry = self.entry()
        if entry is None:
            for _ in range(times):
                self._call(*inputs)
        elif times:
            _repeat(entry, times, self.given(inputs))

    def given(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """What the entry takes, after a first call: the inputs, and constants of the graph."""
        return [inputs[x] if isinstance(x, int) else x for x in self._places]

    def entry(self) -> Any:
        """The address of the code, if there is one for the loop in C++; it is looked up once."""
        if self._address is None:
            try:
                self._load(self._file())
            except Exception:  # another version of torch has it elsewhere: call by call
                self._address = False
        return self._address or None

    def _load(self, library: str) -> None:
        self._library = ctypes.PyDLL(library)
        self._address = ctypes.cast(getattr(self._library, ENTRY), ctypes.c_void_p)
        _driver()

    def _file(self) -> str:
        """Where the code lies that was made."""
        return self._compiled.current_callable.__globals__["inductor_entry"].__self__.__file__

    def _keep(self) -> None:
        """Takes note of the code, if it is one for the loop in C++."""
        if self.entry() is not None:
            kept.keep(self._key, self._file(), self._places)


def _compile(graph: GraphModule, inputs: Sequence[Tensor], native: Native) -> Callable[..., Any]:
    """The graph as compiled code; notes what its entry takes, of which constants are a part."""
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    def inner(inside: GraphModule, examples: Sequence[Any], **options: Any) -> Callable[..., Any]:
        compiled: Any = compile_fx_inner(inside, examples, **options)
        native._compiled = compiled

        def boxed(given: list[Any]) -> Any:
            if not native._places:
                native._given[:] = given
            return compiled(given)

        boxed._boxed_call = True  # type: ignore[attr-defined]
        return boxed

    # The cache of graphs is asked only where it is known what sizes depend on.
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # and SymPy, 470 modules

    sizes = TracingContext(FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True))
    options = OPTIONS | {
        "aot_inductor.custom_ops_to_c_shims": Shims(),
        "cpp_cache_precompile_headers": _has_headers(),
    }
    with (
        torch.no_grad(),
        tracing(sizes),
        warnings.catch_warnings(),
        _silent(*TALKATIVE),
        _vectors(),
    ):
        warnings.simplefilter("ignore")
        call: Any = compile_fx
        return call(graph, list(inputs), inner_compile=inner, config_patches=options)


@contextmanager
def _vectors() -> Iterator[None]:
    """A context in which the compiler is taken to know the vectors that the processor has.

    Inductor tries each kind first, which takes seven seconds where nothing is cached yet. A
    compiler that does not know them raises an error.
    """
    from torch._inductor import config, cpu_vec_isa

    known = cpu_vec_isa.supported_vec_isa_list
    used = [kind for kind in known if not any(name in str(kind) for name in UNUSED)]
    cpu_vec_isa.valid_vec_isa_list.cache_clear()
    cpu_vec_isa.supported_vec_isa_list = used
    try:
        with config.patch({"cpp.vec_isa_ok": True}):
            yield
    finally:
        cpu_vec_isa.supported_vec_isa_list = known
        cpu_vec_isa.valid_vec_isa_list.cache_clear()


def _has_headers() -> bool:
    """Whether headers were compiled before: twice as long as it takes to read them once."""
    from torch._inductor.codecache import _HEADER_DIR

    return any(Path(_HEADER_DIR).glob("*.gch"))


@contextmanager
def _silent(*names: str) -> Iterator[None]:
    """A context in which loggers say nothing but errors."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _place(tensor: Tensor, inputs: Sequence[Tensor]) -> int | Tensor:
    """Which input a tensor is; itself where it is none, but a constant."""
    return next((n for n, x in enumerate(inputs) if x is tensor), tensor)


@functools.cache
def _driver() -> tuple[Callable[..., int], Any]:
    """The loop in C++, and what gives another handle of a tensor."""
    text = DRIVER.replace("MOST", str(MOST))
    key = kept.named(text)
    found = kept.find(key)
    if found is None:
        from torch._inductor.codecache import CppCodeCache

        with _vectors():
            found = kept.Kept(CppCodeCache.load(text)._name, [])
        kept.keep(key, *found)
    repeat = ctypes.PyDLL(found.library).repeat
    repeat.restype = ctypes.c_int64
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    repeat.argtypes = [pointer, pointer, number, pointer, number, ctypes.c_char_p, number]
    return repeat, new_handle()


def new_handle() -> Any:
    """What gives another handle of a tensor."""
    torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    return ctypes.cast(torch_cpu.aoti_torch_new_tensor_handle, ctypes.c_void_p)


def _repeat(entry: Any, times: int, given: list[Tensor]) -> None:
    repeat, again = _driver()
    message = ctypes.create_string_buffer(1000)
    capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(given)
    try:
        handles = (ctypes.c_void_p * len(given))(*map(_pointer, capsules))
        done = repeat(entry, again, times, handles, len(given), message, len(message))
    finally:
        torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(capsules)  # and lets them go
    if done < times:
        raise RuntimeError(message.value.decode(errors="replace"))


def handles_of(given: Sequence[Tensor]) -> Any:
    """An array of the handles of tensors, which stay as long as the process."""
    capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(given))
    return (ctypes.c_void_p * len(given))(*map(_pointer, capsules))


def _pointer(capsule: Any) -> int:
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return get(capsule, None)
