"""Small triangular systems in code that Inductor compiles.

Torch solves them through a call that it looks up by its name, which takes longer than the solution
does: for a guide with a full covariance of a few latents, as long as the rest of a step.
"""

import torch
from torch import Tensor
from torch.fx import GraphModule

SMALL = 2**10  # products of numbers in all, up to which it is done here
# What stands in the code that Inductor writes. Shapes: `(N, n, n)` and `(N, n, k)`.
SHIMS_OF_SOLVE = [
    """inline AOTITorchError aoti_torch_cpu_small_solve(
        AtenTensorHandle triangle, AtenTensorHandle right, int32_t upper,
        AtenTensorHandle* result) {
      int64_t shape[3], of_triangle[3], of_right[3];
      int32_t dtype;
      void *first, *second, *third;
      for (int i = 0; i < 3; ++i) {
        aoti_torch_get_size(right, i, &shape[i]);
        aoti_torch_get_stride(triangle, i, &of_triangle[i]);
        aoti_torch_get_stride(right, i, &of_right[i]);
      }
      aoti_torch_get_dtype(right, &dtype);
      aoti_torch_get_data_ptr(triangle, &first);
      aoti_torch_get_data_ptr(right, &second);
      const int64_t n = shape[1], k = shape[2], of_result[] = {n * k, k, 1};
      AOTITorchError error = aoti_torch_empty_strided(
          3, shape, of_result, dtype, aoti_torch_device_type_cpu(), 0, result);
      if (error) return error;
      aoti_torch_get_data_ptr(*result, &third);
      auto solve = [&](auto* a, auto* b, auto* x) {
        for (int64_t each = 0; each < shape[0]; ++each)
          for (int64_t column = 0; column < k; ++column)
            for (int64_t done = 0; done < n; ++done) {
              const int64_t i = upper ? n - 1 - done : done;
              auto sum = b[each * of_right[0] + i * of_right[1] + column * of_right[2]];
              const auto* row = a + each * of_triangle[0] + i * of_triangle[1];
              auto* own = x + each * of_result[0] + column;
              for (int64_t j = upper ? i + 1 : 0; j < (upper ? n : i); ++j)
                sum -= row[j * of_triangle[2]] * own[j * k];
              own[i * k] = sum / row[i * of_triangle[2]];
            }
      };
      if (dtype == aoti_torch_dtype_float64())
        solve((const double*)first, (const double*)second, (double*)third);
      else
        solve((const float*)first, (const float*)second, (float*)third);
      return error;
    }""",
]


@torch.library.custom_op("ppl_models::small_solve", mutates_args=())
def small_solve(triangle: Tensor, right: Tensor, upper: bool) -> Tensor:
    """The solution of `triangle @ x = right`."""
    return torch.linalg.solve_triangular(triangle, right, upper=upper)


@small_solve.register_fake
def _(triangle: Tensor, right: Tensor, upper: bool) -> Tensor:
    return torch.empty(right.shape, dtype=right.dtype, device=right.device)


def solve_here(graph: GraphModule) -> None:
    """Takes the small triangular systems of a graph from torch."""
    target = torch.ops.aten.linalg_solve_triangular.default
    for node in graph.graph.find_nodes(op="call_function", target=target):
        triangle, right = (x.meta["val"] for x in node.args)
        is_known = node.kwargs.keys() == {"upper"} and triangle.device.type == "cpu"
        is_known &= right.dtype in (torch.float32, torch.float64) and right.dim() == 3
        if is_known and triangle.shape[0] == right.shape[0] and _work(right) <= SMALL:
            with graph.graph.inserting_before(node):
                solved = graph.graph.call_function(
                    torch.ops.ppl_models.small_solve.default, (*node.args, node.kwargs["upper"])
                )
            node.replace_all_uses_with(solved)
            graph.graph.erase_node(node)
    graph.recompile()


def _work(right: Tensor) -> int:
    return right.numel() * right.shape[1]
