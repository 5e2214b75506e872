"""Find the ReLUs in the graph of a pass, however the model spells them."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from torchpeek.errors import MethodNotApplicable, notify

# The backward nodes of activation functions that are not ReLU, and the functions' names.
_OTHER_ACTIVATIONS = {
    "GeluBackward0": "GELU",
    "SiluBackward0": "SiLU",
    "HardswishBackward0": "hardswish",
    "MishBackward0": "Mish",
    "EluBackward0": "ELU or SELU",
    "CeluBackward0": "CELU",
    "LeakyReluBackward0": "leaky ReLU",
    "RreluWithNoiseBackward0": "RReLU",
    "PreluKernelBackward0": "PReLU",
    "SoftplusBackward0": "softplus",
    "TanhBackward0": "tanh",
}
# The nodes of parts of a model whose operations are not in the graph.
_OPAQUE = {
    "DifferentiableGraphBackward": "scripted",
    "CheckpointFunctionBackward": "checkpointed with use_reentrant=True",
    "CompiledFunctionBackward": "compiled",
}


def rectifiers_between(scores: Tensor, leaf: Tensor) -> list[Node]:
    """The backward nodes of the ReLUs through which the scores depend on the leaf.

    A ReLU is a call of relu, relu6, threshold or hardtanh from zero, clamp from zero, or maximum with zeros, as a
    module, a function or a method, in place or not. Where other activation functions lie there, too, a notice names
    them. The list is empty where the scores do not depend on the leaf.

    Args:
        scores: A tensor with its graph.
        leaf: The leaf that the graph starts at.

    Raises:
        MethodNotApplicable: When there is no ReLU, or a part of the model hides its operations from the graph.
    """
    nodes = _nodes_between(scores, leaf)
    if not nodes:
        return []  # no gradient flows back to the leaf at all, which the caller finds out
    for node in nodes:
        for name, description in _OPAQUE.items():
            if name in node.name():
                raise MethodNotApplicable(
                    f"guided backpropagation changes gradients at ReLUs, and a part of the model is {description}, so "
                    "its ReLUs are not in the graph. Next: give the model without that, or choose another method, "
                    "such as saliency or integrated-gradients"
                )
    rectifiers = [node for node in nodes if _is_rectifier(node)]
    others = sorted({_OTHER_ACTIVATIONS[node.name()] for node in nodes if node.name() in _OTHER_ACTIVATIONS})
    if not rectifiers:
        instead = f"its activation functions are {', '.join(others)}" if others else "it has none"
        raise MethodNotApplicable(
            f"guided backpropagation changes gradients at ReLUs, and no ReLU lies between the input and the score; "
            f"{instead}. Next: choose a method for any network, such as saliency, smoothgrad or integrated-gradients"
        )
    if others:
        notify(
            f"guided backpropagation changes gradients at ReLUs only; {', '.join(others)} in the same model "
            f"{'have' if len(others) > 1 else 'has'} plain gradients"
        )
    return rectifiers


def _is_rectifier(node: Any) -> bool:
    name = node.name()
    if name.startswith("Relu"):
        return True
    if name.startswith("Threshold"):
        return bool(node._saved_threshold == 0)
    if name.startswith("Hardtanh"):
        return bool(node._saved_min_val == 0)
    if name.startswith(("ClampMinBackward0", "ClampBackward1")):  # the bounds are numbers
        return node._saved_min is not None and bool(node._saved_min == 0)
    if name.startswith("MaximumBackward"):  # torch.maximum(a, zero), or max(a, zero)
        return any(not bool(each.any()) for each in (node._saved_self, node._saved_other))
    return False


def _nodes_between(scores: Tensor, leaf: Tensor) -> list[Node]:
    """The nodes of the graph behind `scores` on any path to `leaf`."""
    end = get_gradient_edge(leaf).node
    start = get_gradient_edge(scores).node
    users: dict[Node, list[Node]] = {start: []}  # node -> the nodes that its gradient comes from
    stack = [start]
    while stack:
        node = stack.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            if following not in users:
                users[following] = []
                stack.append(following)
            users[following].append(node)
    connected = dict.fromkeys([end] if end in users else [])
    stack = list(connected)
    while stack:
        for node in users[stack.pop()]:
            if node not in connected:
                connected[node] = None
                stack.append(node)
    return list(connected)
