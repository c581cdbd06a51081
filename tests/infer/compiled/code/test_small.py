"""Small results are made once, and are what they were."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_models.infer.compiled.code.native import Native
from ppl_models.infer.compiled.code.small import make_small_once


def test_a_small_result_is_made_by_itself_where_a_large_one_reads_it():
    def step(x, scale, result):
        whitened = x / scale.exp()[:, None]
        result.copy_((whitened - scale.exp().sum()).sum(1))
        return ()

    torch.manual_seed(0)
    inputs = [torch.randn(3, 100).double(), torch.randn(3).double(), torch.zeros(3).double()]
    graph = make_fx(step, tracing_mode="fake")(*inputs)
    make_small_once(graph)
    forced = torch.ops.prims.inductor_force_stride_order.default
    made = {str(node.args[0]) for node in graph.graph.nodes if node.target is forced}
    assert made == {"exp", "sum_1"}  # and not what is as large as what reads it
    Native(graph, inputs)(2, inputs)
    x, scale, result = inputs
    expected = (x / scale.exp()[:, None]).sum(1) - 100 * scale.exp().sum()
    torch.testing.assert_close(result, expected)
