"""Joins operators of a recorded decode step, so that a step has fewer of them. To the bit the same.

Between its matrix products a step of a small model is hundreds of short operators, each of which costs more than what
it computes. Which ones are joined is a matter of how they are connected, whatever the model; that the numbers between
them are those that are meant here (a half, a square), nobody looks at: who records compares the results.
"""

import warnings
from typing import Any

import torch

# A rotary position embedding: x * cos + cat(-right half, left half) * sin.
_ROTATE = (
    """
    graph(%x, %cos, %sin, %dim, %start, %step, %two, %end, %last):
      %straight = aten::mul(%x, %cos)
      %size = aten::size(%x, %dim)
      %number = prim::NumToTensor(%size)
      %half = aten::floor_divide(%number, %two)
      %middle = aten::Int(%half)
      %left = aten::slice(%x, %dim, %start, %middle, %step)
      %right = aten::slice(%x, %dim, %middle, %end, %step)
      %negative = aten::neg(%right)
      %parts = prim::ListConstruct(%negative, %left)
      %turned = aten::cat(%parts, %last)
      %across = aten::mul(%turned, %sin)
      %out = aten::add(%straight, %across, %step)
      return (%out)
    """,
    """
    graph(%x, %cos, %sin, %dim, %start, %step, %two, %end, %last):
      %out = endstop::rotate(%x, %cos, %sin)
      return (%out)
    """,
)
# A root-mean-square norm. The mean stays torch's: it is a sum, and another order would give other last bits.
_NORM = (
    """
    graph(%x, %weight, %float, %no, %dims, %keep, %none, %epsilon, %one, %two, %type):
      %wide = aten::to(%x, %float, %no, %no, %none)
      %squares = aten::pow(%wide, %two)
      %mean = aten::mean(%squares, %dims, %keep, %none)
      %sum = aten::add(%mean, %epsilon, %one)
      %factor = aten::rsqrt(%sum)
      %scaled = aten::mul(%wide, %factor)
      %narrow = aten::to(%scaled, %type, %no, %no, %none)
      %out = aten::mul(%weight, %narrow)
      return (%out)
    """,
    """
    graph(%x, %weight, %float, %no, %dims, %keep, %none, %epsilon, %one, %two, %type):
      %squares = endstop::squares(%x)
      %mean = aten::mean(%squares, %dims, %keep, %none)
      %out = endstop::scaled_by_rms(%x, %mean, %epsilon, %weight)
      return (%out)
    """,
)


def fuse(recorded: Any) -> Any:
    """A recording with fewer operators.

    Args:
        recorded: What `torch.jit.trace` has made of a module. It is not changed.

    Returns:
        Another, over the same weights.
    """
    jit: Any = torch.jit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of all of torch.jit; its successor compiles for minutes
        fused = jit.freeze(recorded.eval(), optimize_numerics=False)
    graph = fused.graph
    passes: Any = torch._C
    passes._jit_pass_cse(graph)
    for pattern, joined in (_ROTATE, _NORM):
        passes._jit_pass_custom_pattern_based_rewrite_graph(pattern, joined, graph)
    _join_linears(graph)
    passes._jit_pass_dce(graph)
    return fused


def _join_linears(graph: Any) -> None:
    """Linear layers that are given the same rows become one call."""
    by_input: dict[tuple[str, str], list[Any]] = {}
    for node in graph.nodes():
        if node.kind() == "endstop::linear" and _has_fixed_weights(node):
            x, *_, is_exact = node.inputs()
            by_input.setdefault((x.debugName(), is_exact.debugName()), []).append(node)
    for nodes in by_input.values():
        if len(nodes) > 1:
            _join(graph, nodes)


def _has_fixed_weights(node: Any) -> bool:
    """And so may be computed as soon as its input is there."""
    return all(value.node().kind() == "prim::Constant" for value in list(node.inputs())[1:])


def _join(graph: Any, nodes: list[Any]) -> None:
    first = nodes[0]
    columns = list(zip(*(list(node.inputs()) for node in nodes), strict=True))
    tensor = torch._C.TensorType.get()
    optional = torch._C.OptionalType(tensor)
    lists = []
    for values, element in zip(columns[1:4], (tensor, optional, optional), strict=True):
        made = graph.create("prim::ListConstruct", list(values), 1)
        made.output().setType(torch._C.ListType(element))
        made.insertBefore(first)
        lists.append(made.output())
    joined = graph.create("endstop::linears", [columns[0][0], *lists, columns[4][0]], 1)
    joined.output().setType(torch._C.ListType(tensor))
    joined.insertBefore(first)
    unpacked = graph.create("prim::ListUnpack", [joined.output()], len(nodes))
    unpacked.insertBefore(first)
    for node, output in zip(nodes, unpacked.outputs(), strict=True):
        output.setType(tensor)
        node.output().replaceAllUsesWith(output)
        node.destroy()
