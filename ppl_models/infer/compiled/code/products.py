"""Products of matrices in code that Inductor compiles, by the widest vectors of the processor.

Torch gives products of numbers in single precision to MKL, which uses vectors of 512 bits on
processors of one make only: on others it takes twice as long as oneDNN. Inductor has oneDNN for
products with constants alone; the operations here have it for any. Large products are torch's
linear maps of oneDNN, whose call costs some ten microseconds; those of middle size are one call of
the kernel inside, for which a matrix must lie in memory row by row, so that one may be copied.
"""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

MIDDLE, LARGE = 2**16, 2**22  # products of numbers
KERNEL = "_ZN2at6native7cpublas6brgemmEllllllbPKfS3_Pfb"  # at::native::cpublas::brgemm
# What stands in the code that Inductor writes: torch's own entries, and how they are called.
SHIMS_OF_LARGE = [
    """AOTITorchError aoti_torch_cpu__linear_pointwise(
        AtenTensorHandle, AtenTensorHandle, AtenTensorHandle*, const char*, const double**, int64_t,
        const char**, AtenTensorHandle*)""",
    """inline AOTITorchError aoti_torch_cpu_large_product(
        AtenTensorHandle left, AtenTensorHandle right, AtenTensorHandle* result) {
      return aoti_torch_cpu__linear_pointwise(
          left, right, nullptr, "none", nullptr, 0, nullptr, result);
    }""",
]
SHIMS_OF_MIDDLE = [
    f"""void ppl_models_brgemm(
        int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, bool,
        const float*, const float*, float*, bool) asm("{KERNEL}")""",
    """inline const float* ppl_models_by_rows(
        AtenTensorHandle tensor, std::vector<float>& room, int64_t* height, int64_t* width,
        int64_t* step) {
      int64_t down, right;
      void* pointer;
      aoti_torch_get_size(tensor, 0, height);
      aoti_torch_get_size(tensor, 1, width);
      aoti_torch_get_stride(tensor, 0, &down);
      aoti_torch_get_stride(tensor, 1, &right);
      aoti_torch_get_data_ptr(tensor, &pointer);
      const float* first = static_cast<const float*>(pointer);
      *step = right == 1 && down >= *width ? down : *width;
      if (*step == down && right == 1) return first;
      room.resize(*height * *width);
      constexpr int64_t SIDE = 16;
      for (int64_t top = 0; top < *height; top += SIDE)
        for (int64_t side = 0; side < *width; side += SIDE)
          for (int64_t i = top; i < std::min(top + SIDE, *height); ++i)
            for (int64_t j = side; j < std::min(side + SIDE, *width); ++j)
              room[i * *width + j] = first[i * down + j * right];
      return room.data();
    }""",
    """inline AOTITorchError aoti_torch_cpu_middle_product(
        AtenTensorHandle left, AtenTensorHandle right, AtenTensorHandle* result) {
      static thread_local std::vector<float> rooms[2];
      int64_t height, inner, width, left_step, right_step;
      const float* a = ppl_models_by_rows(left, rooms[0], &height, &inner, &left_step);
      const float* b = ppl_models_by_rows(right, rooms[1], &inner, &width, &right_step);
      const int64_t sizes[] = {height, width}, strides[] = {width, 1};
      AOTITorchError error = aoti_torch_empty_strided(
          2, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, result);
      if (error) return error;
      void* c;
      aoti_torch_get_data_ptr(*result, &c);
      ppl_models_brgemm(height, width, inner, left_step, right_step, width, false, a, b,
                        static_cast<float*>(c), false);
      return error;
    }""",
]


@torch.library.custom_op("ppl_models::large_product", mutates_args=())
def large_product(left: Tensor, right: Tensor) -> Tensor:
    """The product `left @ right.T`."""
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


@large_product.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[0])


@torch.library.custom_op("ppl_models::middle_product", mutates_args=())
def middle_product(left: Tensor, right: Tensor) -> Tensor:
    """The product `left @ right`."""
    return left @ right


@middle_product.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


@functools.cache
def _has_kernel() -> bool:
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return library.exists() and hasattr(ctypes.CDLL(str(library)), KERNEL)


def multiply_by_wide_vectors(graph: GraphModule) -> None:
    """Gives products that are large enough to oneDNN, on processors with wide vectors."""
    is_wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    if not (is_wide and torch.backends.mkldnn.is_available() and _has_kernel()):
        return
    aten = torch.ops.aten
    for target in (aten.mm.default, aten.addmm.default):
        for node in graph.graph.find_nodes(op="call_function", target=target):
            *bias, left, right = node.args
            a, b = left.meta["val"], right.meta["val"]
            work = a.numel() * b.shape[1]
            if node.kwargs or a.dtype != torch.float32 or work < MIDDLE:
                continue
            with graph.graph.inserting_before(node):
                # A kernel is one thread's; what is large may be the work of more.
                is_large = work >= (LARGE if torch.get_num_threads() == 1 else LARGE // 8)
                product = (_large if is_large else _middle)(graph, left, right)
                for x in bias:
                    product = graph.graph.call_function(aten.add.Tensor, (product, x))
            node.replace_all_uses_with(product)
            graph.graph.erase_node(node)
    # A product may lie in memory the other way round, of which not all views can be had.
    for node in graph.graph.find_nodes(op="call_function", target=aten.view.default):
        node.target = aten.reshape.default
    graph.recompile()


def _large(graph: GraphModule, left: Node, right: Node) -> Node:
    turned = graph.graph.call_function(torch.ops.aten.t.default, (right,))
    return graph.graph.call_function(torch.ops.ppl_models.large_product.default, (left, turned))


def _middle(graph: GraphModule, left: Node, right: Node) -> Node:
    """The product, or that of the transposed where less must be copied for it."""
    a, b = left.meta["val"], right.meta["val"]
    turn, product = torch.ops.aten.t.default, torch.ops.ppl_models.middle_product.default
    if _copied(a) + _copied(b) <= _copied(a.t()) + _copied(b.t()):
        return graph.graph.call_function(product, (left, right))
    turned = [graph.graph.call_function(turn, (x,)) for x in (right, left)]
    return graph.graph.call_function(turn, (graph.graph.call_function(product, tuple(turned)),))


def _copied(matrix: Tensor) -> int:
    return 0 if matrix.stride(1) == 1 else matrix.numel()
