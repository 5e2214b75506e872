"""Which layers depend on the picture: change the picture, run the model again, and compare what each layer returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torchpeek.engine.attempts import Refusal, attempted, shown_later
from torchpeek.engine.fixed_batch import fixed_batch_size, with_fixed_batch
from torchpeek.engine.forward import run
from torchpeek.engine.model_cache import ModelCache
from torchpeek.engine.model_call import ModelCall
from torchpeek.engine.preserve import preserved
from torchpeek.hooks import ForwardHook, attached, containers, shared, takes_hooks
from torchpeek.tensor_formats import computable, has_values, is_dense

# How much of the changed picture comes from elsewhere in the picture, and how much darker it is. Little enough for a
# detector to find the same objects, and a model that depends on values to take the same branches.
_SHARE = 0.1

# A digest is computed in chunks of so many numbers, because it takes copies of eight bytes for each of them.
_CHUNK = 2**22

# By the signature of the call.
_UNAFFECTED: ModelCache[object, frozenset[str]] = ModelCache(capacity=16)
_UNCONNECTED: ModelCache[object, frozenset[str]] = ModelCache(capacity=16)

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}  # by bytes of an element


def with_changed_picture(call: ModelCall) -> ModelCall:
    """The same call with other values everywhere in the picture. All other arguments stay the same."""
    return call.with_picture(changed_picture(call.picture))


def changed_picture(picture: Tensor) -> Tensor:
    """A picture much like this one, with another value at every position that can have one.

    Every value is mixed with that at the opposite position, and then made smaller. So the values stay in the range from
    the smallest, or zero, to the largest of the picture. The change differs from position to position, so that no mean
    over the picture stays the same.

    Args:
        picture: (N, C, *grid), of any dtype.
    """
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(picture.shape[1:], generator=generator).to(picture.device) * _SHARE  # (C, *grid)
    values = computable(picture)
    if not picture.is_floating_point():  # indices, or numbers of 8 bits: other values that the picture has elsewhere
        flipped = values.flip(tuple(range(1, picture.ndim)))
        changed = torch.where(values == flipped, torch.zeros_like(values), flipped)
        return (changed if bool((changed != values).any()) else torch.ones_like(values)).to(picture.dtype)
    values = values if picture.dtype == torch.float64 else values.float()
    opposite = values.flip(tuple(range(2, picture.ndim)))
    changed = torch.lerp(values, opposite, shares.to(values)) * (1 - shares.to(values))
    empty = (values == 0).flatten(1).all(1).view(-1, *(1 for _ in picture.shape[1:]))
    return torch.where(empty, shares.to(values), changed).to(picture.dtype)


def with_varied_picture(call: ModelCall) -> ModelCall:
    """The same call, with a random picture if the first one has the same value everywhere.

    A black picture may leave every ReLU of a layer at zero. What is remembered for all pictures must not follow from
    one that shows so little.
    """
    if call.size.numel() < 2:
        return call
    values = call.picture[:1].flatten(2)
    is_even = bool((values == values[..., :1]).all())
    return with_random_picture(call) if is_even else call


def with_random_picture(call: ModelCall) -> ModelCall:
    """The same call, with random numbers from 0 to 1 in the picture, or from 0 to 255 for bytes.

    A picture of other integers stays as it is, because they may be indices.
    """
    picture, is_bytes = call.picture, call.picture.dtype == torch.uint8
    if not (picture.is_floating_point() or is_bytes):
        return call
    random = torch.rand(picture.shape[1:], generator=torch.Generator().manual_seed(0)) * (255 if is_bytes else 1)
    return call.with_picture(random.to(picture).expand(picture.shape).clone())


class OutputDigests:
    """A digest of every tensor that each layer returns in one pass. Equal tensors have equal digests."""

    def __init__(self) -> None:
        self._digests: dict[str, list[dict[str, tuple[object, ...]]]] = {}  # layer -> for each call: path -> digest

    def hooks(self, model: nn.Module) -> Iterable[tuple[nn.Module, ForwardHook]]:
        """A forward hook for each layer of the model. What was recorded before is dropped."""
        self._digests.clear()
        return [
            (module, partial(self._record, name))
            for name, module in model.named_modules()
            if name and takes_hooks(module)
        ]

    def unaffected(self, other: OutputDigests) -> frozenset[str]:
        """The layers that returned the same in both passes, in all of their calls, and `layer[i]` for each call."""
        layers: set[str] = set()
        for name, calls in self._digests.items():
            others = other._digests.get(name, [])
            if len(others) != len(calls):
                continue
            same = [bool(one) and one == two for one, two in zip(calls, others, strict=True)]
            layers.update(f"{name}[{index}]" for index, equal in enumerate(same) if equal)
            if all(same):
                layers.add(name)
        return frozenset(layers)

    def _record(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        digests = {path: digest(tensor) for path, tensor in containers.leaves(output)}
        self._digests.setdefault(name, []).append(digests)


def comparable() -> AbstractContextManager[None]:
    """A block in which a pass with gradients and one without compute the same, to the last bit.

    torch's attention and transformer layers have fast paths without gradients, which round differently.
    """
    return shared("no fast paths", _without_fast_paths)


@contextmanager
def _without_fast_paths() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def digest(tensor: Tensor) -> tuple[object, ...]:
    """The shape of a tensor and a number that depends on every bit of it; unique where the values cannot be read."""
    if not is_dense(tensor) or not has_values(tensor) or tensor.element_size() not in _BITS:
        return (object(),)
    # A type of tensor may have no values, as a fake one has none.
    number = attempted(lambda: _number(tensor.detach()), shown_later)
    return (object(),) if isinstance(number, Refusal) else (tuple(tensor.shape), tensor.dtype, number)


def _number(tensor: Tensor) -> int:
    values = tensor.int_repr() if tensor.is_quantized else tensor  # torch reads no bits of quantised tensors
    flat = (torch.view_as_real(values) if values.is_complex() else values).reshape(-1)
    total = 0
    for start in range(0, len(flat), _CHUNK):
        chunk = flat[start : start + _CHUNK]
        if chunk.is_floating_point() and chunk.element_size() > 1:  # torch does not add numbers of 8 bits
            chunk = chunk + 0.0  # -0.0 and 0.0 are the same value
        bits = chunk.contiguous().view(_BITS[chunk.element_size()]).long()
        weights = torch.arange(1, 2 * len(bits), 2, device=bits.device) * 0x9E3779B97F4A7C1
        total = hash((total, int((bits * weights).sum())))
    return total


def unaffected_layers(model: nn.Module, call: ModelCall) -> frozenset[str]:
    """The layers that return the same whatever the picture is, as those of another input's branch do.

    A layer with several calls is in the set if all of them return the same, and as `layer[i]` for each call that does.
    Two passes over the first sample, once for each model and signature of the call.
    """
    known = known_unaffected(model, call)
    if known is not None:
        return known

    def digests(each: ModelCall, size: int | None) -> OutputDigests:
        recorded = OutputDigests()
        with attached(recorded.hooks(model)):
            run(model, each.one_sample(size).for_one_pass())
        return recorded

    def unaffected(size: int | None) -> frozenset[str]:
        of_picture, random = digests(call, size), with_random_picture(call)
        if random is not call:  # a layer that is zero for one dark picture is not zero for a random one
            of_random = attempted(partial(digests, random, size), partial(digests, call, size))
            if not isinstance(of_random, Refusal):  # the model may depend on values of its picture
                return of_picture.unaffected(of_random)
        return of_picture.unaffected(digests(with_changed_picture(call), size))

    with preserved(model):
        return remember_unaffected(model, call, with_fixed_batch(model, call, unaffected))


def known_unaffected(model: nn.Module, call: ModelCall) -> frozenset[str] | None:
    """What is remembered of `unaffected_layers`; None where nothing is."""
    return _UNAFFECTED.get(model, call.signature)


def remember_unaffected(model: nn.Module, call: ModelCall, layers: frozenset[str]) -> frozenset[str]:
    """Remember the layers for `unaffected_layers`, and return them."""
    return _UNAFFECTED.put(model, call.signature, layers)


def unconnected_layers(model: nn.Module, call: ModelCall) -> frozenset[str]:
    """The layers, and calls `layer[i]`, with no path to the picture: unaffected by it, and not connected by a graph.

    Raises:
        TorchpeekError: As the model does.
    """
    known = _UNCONNECTED.get(model, call.signature)
    if known is not None:
        return known
    unaffected = unaffected_layers(model, call)
    if not unaffected:
        return _UNCONNECTED.put(model, call.signature, unaffected)
    modules = {
        name: module for name, module in model.named_modules() if name in unaffected or f"{name}[0]" in unaffected
    }
    unconnected = unaffected - connected_layers(model, call.one_sample(fixed_batch_size(model, call)), modules)
    return _UNCONNECTED.put(model, call.signature, unconnected)


def separate_layers(
    model: nn.Module, call: ModelCall, unaffected: frozenset[str], layers: Iterable[str]
) -> frozenset[str]:
    """Those of the `unaffected` layers that have no path to the picture, if any of `layers` is among them.

    A layer may be unaffected by accident: a ReLU that is never positive, or a network whose signal vanishes.
    """
    if unaffected.isdisjoint(layers):
        return frozenset()

    def without_gradients() -> frozenset[str]:
        with preserved(model):
            run(model, call.for_one_pass())
        return unaffected

    # The model may have no gradients; then values alone decide.
    unconnected = attempted(partial(unconnected_layers, model, call), without_gradients)
    return unconnected.unchanged if isinstance(unconnected, Refusal) else unconnected


def connected_layers(model: nn.Module, call: ModelCall, layers: Mapping[str, nn.Module]) -> set[str]:
    """The layers, and calls `layer[i]`, with a path to the picture that gradients can take, even where they are zero.

    One pass with the graph from the picture on. A layer whose ReLU is never positive returns the same for all pictures
    and is connected all the same.
    """
    nodes: dict[str, list[list[Any]]] = {name: [] for name in layers}  # layer -> for each call: where its graph ends

    def keep(name: str, module: nn.Module, args: Any, output: Any) -> None:
        nodes[name].append([tensor.grad_fn for _, tensor in containers.leaves(output) if tensor.grad_fn is not None])

    hooks = [(module, partial(keep, name)) for name, module in layers.items()]
    connected: set[str] = set()
    if not (call.picture.is_floating_point() or call.picture.is_complex()):
        return connected  # integers have no gradients
    with preserved(model), torch.enable_grad(), attached(hooks):
        leaf = call.picture.detach().clone().requires_grad_()
        start = leaf.clone()
        output = run(model, call.for_one_pass(start))
        reached = _nodes_that_reach(
            start.grad_fn, [node for calls in nodes.values() for each in calls for node in each]
        )
        del output
    for name, calls in nodes.items():
        for index, of_call in enumerate(calls):
            if any(node in reached for node in of_call):
                connected |= {name, f"{name}[{index}]"}
    return connected


def _nodes_that_reach(start: Any, ends: Iterable[Any]) -> set[Any]:
    """The nodes of a graph, from `ends` back, from which `start` is reached."""
    children: dict[Any, list[Any]] = {}
    remaining, visited = list(ends), set[Any]()
    while remaining:
        node = remaining.pop()
        if node in visited:
            continue
        visited.add(node)
        for parent, _ in node.next_functions:
            if parent is not None:
                children.setdefault(parent, []).append(node)
                remaining.append(parent)
    reached, remaining = set[Any](), [start]
    while remaining:
        node = remaining.pop()
        if node not in reached:
            reached.add(node)
            remaining += children.get(node, ())
    return reached
