"""Optimization passes over a traced graph that do not change its results."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument, map_arg

aten = torch.ops.aten
FILLS = {  # they only use the shape of their argument, which is fixed in a graph
    aten.new_zeros.default: torch.zeros,
    aten.zeros_like.default: torch.zeros,
    aten.new_ones.default: torch.ones,
    aten.ones_like.default: torch.ones,
}
LIFTS = (aten.lift_fresh.default, aten.lift_fresh_copy.default)
# These write to the running mean and variance, their fourth and fifth arguments, which their schemas do not declare.
BATCH_NORMS = (aten.native_batch_norm.default, aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default)
VIEWS = (aten.view.default, aten._unsafe_view.default)
RESHAPES = (aten.expand.default, *VIEWS)


def simplified(module: GraphModule, inputs: list[torch.Tensor]) -> tuple[GraphModule, list[int]]:
    """Remove no-ops, repeated operations and unused results from a graph, and fold constants.

    ``inputs`` are the tensors that the graph was traced with. Unused inputs are removed. Returns the graph and the
    indices of the remaining inputs.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if (same := _equal_argument(node)) is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    written = _written_storage(graph, _same_memory(placeholders, inputs))
    _allow_other_strides(graph, written)
    _fold_constants(module, written)
    _share_repeated(graph, written)
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users and not _has_effect(node):
            graph.erase_node(node)
    used = [index for index, node in enumerate(placeholders) if node.users]
    for node in placeholders:
        if not node.users:
            graph.erase_node(node)
    graph.lint()
    module.recompile()
    return module, used


def _allow_other_strides(graph: Graph, written: set[Node]) -> None:
    """Replace views by reshapes, unless something writes to their memory.

    A replayed kernel may return other strides than the traced one, for which no view exists: convolutions in oneDNN,
    which is disabled while the graph is traced, return the strides of their weights.
    """
    for node in graph.nodes:
        if node.target in VIEWS and node not in written:
            node.target = aten.reshape.default


def _equal_argument(node: Node) -> Node | None:
    """The argument that a no-op returns unchanged; None if the node is not a no-op."""
    if node.target in (aten.detach.default, aten.alias.default):
        return node.all_input_nodes[0]
    if node.target is aten.t.default and (transposed := node.all_input_nodes[0]).target is aten.t.default:
        return transposed.all_input_nodes[0]
    if node.target in RESHAPES and "val" in node.meta and "val" in (source := node.all_input_nodes[0]).meta:
        before, after = source.meta["val"], node.meta["val"]
        return source if before.shape == after.shape and before.stride() == after.stride() else None
    return None


def _has_effect(node: Node) -> bool:
    """Whether a call modifies an argument or a random generator, or returns nothing (e.g. an assertion)."""
    operation = node.target
    if not isinstance(operation, OpOverload):
        return node.op in ("placeholder", "output")
    returns_nothing, draws = not operation._schema.returns, torch.Tag.nondeterministic_seeded in operation.tags
    return bool(_writes(node)) or returns_nothing or draws


def _writes(node: Node) -> set[Node]:
    """The arguments that a call writes to."""
    if not isinstance(node.target, OpOverload):
        return set()
    return _nodes_in(written_arguments(node.target, node.args, node.kwargs))


def written_arguments(operation: OpOverload, args: Sequence, kwargs: Mapping[str, object]) -> list:
    """The arguments that an operation writes to."""
    if operation in BATCH_NORMS:
        return list(args[3:5]) if args[5] else []
    arguments = operation._schema.arguments
    given = {**{a.name: value for a, value in zip(arguments, args, strict=False)}, **kwargs}
    return [given.get(a.name) for a in arguments if a.alias_info is not None and a.alias_info.is_write]


def _may_alias(node: Node) -> bool:
    """Whether a call's result may share storage with an argument."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, OpOverload):  # getitem of a call with several results
        return True
    return any(result.alias_info is not None for result in node.target._schema.returns)


def _same_memory(placeholders: list[Node], inputs: list[torch.Tensor]) -> list[set[Node]]:
    """Groups of inputs that share memory."""
    groups: dict[int, set[Node]] = {}
    for node, tensor in zip(placeholders, inputs, strict=True):
        groups.setdefault(tensor.untyped_storage().data_ptr(), set()).add(node)
    return [group for group in groups.values() if len(group) > 1]


def _written_storage(graph: Graph, same_memory: list[set[Node]]) -> set[Node]:
    """The nodes whose storage an operation writes to: written nodes and all nodes that share memory with them."""
    written: set[Node] = set().union(*map(_writes, graph.nodes))
    size = -1
    while size != len(written):
        size = len(written)
        families = [{node, *node.all_input_nodes} for node in graph.nodes if _may_alias(node)]
        for family in (*families, *same_memory):
            if family & written:
                written |= family
    return written


def _nodes_in(value) -> set[Node]:
    if isinstance(value, Node):
        return {value}
    return set().union(*map(_nodes_in, value)) if isinstance(value, Iterable) and not isinstance(value, str) else set()


def _fold_constants(module: GraphModule, written: set[Node]) -> None:
    """Precompute nodes that do not depend on inputs, random generators or storage that is written to.

    A tensor found during tracing that is not an input only counts as constant if the program created it from Python
    numbers, which torch "lifts". Other code may write to any other tensor.
    """
    graph = module.graph
    values: dict[Node, Argument] = {}
    for node in graph.nodes:
        if node.target in LIFTS and node.args[0].op == "get_attr" and not {node, node.args[0]} & written:
            values[node] = getattr(module, node.args[0].target).clone()
            continue
        fixed = node.op == "call_function" and not _has_effect(node) and node not in written
        if fixed and node.target in FILLS and "val" in node.meta:
            like = node.meta["val"]
            values[node] = FILLS[node.target](like.shape, dtype=like.dtype, device=like.device)
        elif fixed and all(argument in values for argument in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    for number, (node, value) in enumerate(values.items()):
        needed = any(user not in values for user in node.users)
        if node.op == "call_function" and needed and isinstance(value, torch.Tensor):
            name = f"_constant_{number}"
            module.register_buffer(name, value, persistent=False)
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(name))


def _share_repeated(graph: Graph, written: set[Node]) -> None:
    """Merge equal operations on equal inputs (common-subexpression elimination)."""
    known: dict[tuple, Node] = {}
    for node in list(graph.nodes):
        reads_written = node in written or any(argument in written for argument in node.all_input_nodes)
        if node.op not in ("call_function", "get_attr") or _has_effect(node) or reads_written:
            continue
        key = (node.op, node.target, _frozen(node.args), _frozen(node.kwargs))
        first = known.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)


def _frozen(value):
    """A hashable form of a node's arguments that distinguishes 1, 1.0 and True."""
    if isinstance(value, dict):
        return tuple((name, _frozen(part)) for name, part in sorted(value.items()))
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    return value if isinstance(value, Node) else (type(value), value)
