"""Whose positions a tensor has: follow the tensor operations of one pass from the picture on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from torchpeek.engine.layout_inference.data_flow import DataFlow
from torchpeek.engine.model_call import ModelCall
from torchpeek.hooks import active_in_dispatch, containers
from torchpeek.tensor_formats import shape_sizes

# What is known of a tensor, as bits. A tensor without any does not depend on the picture.
_DEPENDENT = 1  # its values depend on the picture
_ON_PICTURE = 2  # its positions may be those of the picture
_SCORES = 4  # a product of two tensors, of which one has positions of the picture: queries and keys, perhaps
_WEIGHTS = 8  # a softmax of such scores, with one axis for the positions of the picture, and one for others
_NOTHING, _PICTURE = 0, _DEPENDENT | _ON_PICTURE

Result = TypeVar("Result")

# Operations by the part of their name after "aten::", without underscores at its ends. Attention in one operation takes
# queries, keys and values.
_ATTENTION = ("scaled_dot_product", "native_multi_head_attention", "flash_att", "flex_att", "efficient_attention")
_RECURRENT = ("lstm", "gru", "mkldnn_rnn_layer", "cudnn_rnn")  # one position of the input after the other
_SOFTMAX = ("softmax", "safe_softmax", "masked_softmax")
_BATCHED_PRODUCTS = ("bmm", "baddbmm")
_PRODUCTS = ("mm", "addmm", "linear", "mkldnn_linear", "mkl_linear")
_FACTORY_PREFIX, _FACTORY_SUFFIX = "new_", "_like"  # they take the shape of a tensor and not its values
_NUMBERS = "lift_fresh"  # torch.tensor(...)
_RANKING = ("sort", "topk", "argsort", "nonzero", "masked_select")  # the positions of the result are ranks
_READING = ("index", "gather", "index_select", "take", "embedding", "grid_sampler_2d", "grid_sampler_3d")
_JOINING = ("cat", "stack")
_POOLING = ("mean", "amax", "max", "adaptive_avg_pool2d", "adaptive_max_pool2d", "avg_pool2d")


class PositionTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's class has no type hints
    """Inside the block, follows which tensors have the positions of the picture.

    Words, object queries and other latent vectors take values from the picture through attention and keep their own
    positions. An operation gives its result the positions of all its arguments, with these exceptions:

    1. Attention gives its result the positions of the queries. Written as two products, the softmax of the first marks
       attention weights, and the second sums over the positions of the values.
    2. A ranking of positions, such as the best k, has the positions of none. To read a tensor at indices that depend on
       the picture gives the positions of the indices.
    3. One vector for each sample brings no positions if it was pooled, is broadcast over positions, or is joined to
       other tokens.

    A tensor of unknown origin is taken to have the positions of the picture: it may come from operations that are not
    seen, such as those of NumPy. Known are parameters, buffers and other tensors that modules hold, the other
    arguments, and numbers that the model makes itself.

    Args:
        model: The model.
        call: A call of the same form as the one to follow.

    Attributes:
        flow: The graph of the operations.
        most_joined: The largest number of tokens without positions of the picture that were joined to some with them.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, call: ModelCall) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class has no type hints
        self.flow = DataFlow()
        self._states: dict[int, dict[object, int]] = {}  # storage -> for each view of it, its bits
        # No other storage comes to the same place as long as there is a weak reference.
        self._references: list[object] = []
        self._nodes: dict[int, int] = {}  # storage -> the operation that wrote into it last
        held = (vars(module).values() for module in model.modules())
        self._held = {
            _storage(tensor)
            for tensor in chain(model.parameters(), model.buffers(), _tensors(chain.from_iterable(held)))
        }
        self._count, self._axes = len(call), call.picture.ndim
        # In a signal, one vector for each sample may be its positions.
        self._vectors = sum(size > 1 for size in call.picture.shape[2:]) > 1
        self.most_joined = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        arguments = list(_tensors((*args, *(kwargs or {}).values())))
        states = [self._state(each) for each in arguments]
        schema = getattr(func, "_schema", None)  # an operation of higher order, such as flex_attention, has a name only
        name: str = func.__name__ if schema is None else schema.name.partition("::")[2]
        inplace = schema is not None and schema.is_mutable
        of_arguments = {_storage(each) for each in arguments}
        has_grid = any(each.ndim == self._axes and _shape(each)[2:].numel() > 1 for each in _tensors((result,)))
        node = self.flow.add({self._nodes[each] for each in of_arguments if each in self._nodes}, has_grid=has_grid)
        if name == "cat":
            self._note_joined(arguments, states, *args[1:])
        for each in _tensors((result,)):
            state = self._state_of_result(name.strip("_"), arguments, states, each)
            if _storage(each) not in of_arguments:
                self._nodes[_storage(each)] = node
            elif inplace:  # all views of it may have changed
                self._nodes[_storage(each)] = node
                for view in self._states.get(_storage(each), {}):
                    self._states[_storage(each)][view] |= state
                state |= self._state(each)
            self._put(each, state)
        return result

    def followed(self, call: ModelCall, run: Callable[[], Result]) -> Result:
        """What `run()` returns, with its operations followed. It runs the model with this call."""
        self._put(call.model_picture, _PICTURE)
        self._held.update(_storage(tensor) for _, tensor in containers.leaves(call.arguments))
        with active_in_dispatch(self):
            return run()

    def depends_on_picture(self, tensor: Tensor) -> bool:
        """Whether the values of a tensor that a layer returned depend on the picture."""
        return bool(self._state(tensor) & _DEPENDENT)

    def has_positions_of_picture(self, tensor: Tensor) -> bool:
        """Whether the positions of a tensor that a layer returned may be those of the picture, and of nothing else."""
        return self._state(tensor) & (_ON_PICTURE | _WEIGHTS) == _ON_PICTURE

    def node(self, tensor: Tensor) -> int | None:
        """The node in the flow of the operation that wrote into a tensor last; None where it is not known."""
        return self._nodes.get(_storage(tensor))

    def _state(self, tensor: Tensor) -> int:
        storage = _storage(tensor)
        views = self._states.get(storage)
        if views is None:
            return _NOTHING if storage in self._held else _PICTURE
        state = views.get(_view(tensor))
        return _union(views.values()) if state is None else state

    def _put(self, tensor: Tensor, state: int) -> None:
        if _storage(tensor) not in self._states:
            self._references.append(_reference(tensor))
        self._states.setdefault(_storage(tensor), {})[_view(tensor)] = state

    def _state_of_result(self, name: str, arguments: list[Tensor], states: list[int], result: Tensor) -> int:
        state = _union(states)
        if name == _NUMBERS and result.ndim < 2:  # a number or a list of them
            return _NOTHING
        if not state & _DEPENDENT or name.startswith(_FACTORY_PREFIX) or name.endswith(_FACTORY_SUFFIX):
            return _NOTHING
        if name.startswith((*_ATTENTION, *_RECURRENT)):
            return _DEPENDENT | states[0] & _ON_PICTURE
        if name in _SOFTMAX:
            return state & ~_SCORES | _WEIGHTS if state & _SCORES else state
        if name in _BATCHED_PRODUCTS:
            one, other = states[-2:]
            if (one | other) & _WEIGHTS:
                # The product sums over the positions of the values. Those of the other axis of the weights remain.
                values = other if one & _WEIGHTS else one
                return _DEPENDENT if values & _ON_PICTURE else _PICTURE
            scores = bool(one & _ON_PICTURE) != bool(other & _ON_PICTURE)
            return _DEPENDENT | (one | other) & _ON_PICTURE | (_SCORES if scores else 0)
        if name in _PRODUCTS:
            return state & ~_SCORES
        if name in _RANKING:
            return _DEPENDENT
        if name in _READING and _union(states[1:]) & _DEPENDENT:
            chosen = any(each.dtype == torch.bool for each in arguments[1:])
            return _DEPENDENT | (0 if chosen else _union(states[1:]) & _ON_PICTURE)
        if self._vectors and not name.startswith("conv"):
            state = self._without_vectors(name, arguments, states, result)
        weighted = any(each & _ON_PICTURE and not each & _WEIGHTS for each in states)  # something else, by weights
        return state & ~_WEIGHTS if weighted else state

    def _without_vectors(self, name: str, arguments: list[Tensor], states: list[int], result: Tensor) -> int:
        """The bits of the result, where one vector for each sample brings no positions to a longer tensor."""
        if name in _POOLING and self._is_vector(result):
            return _union(states) & ~_ON_PICTURE
        vectors = [self._is_vector(each) and _shape(each).numel() < _shape(result).numel() for each in arguments]
        if name in _JOINING and sum(map(bool, vectors)) > 1:  # a sequence, position by position
            return _union(states)
        return _union(
            each & ~_ON_PICTURE if is_vector else each for each, is_vector in zip(states, vectors, strict=True)
        )

    def _note_joined(self, arguments: list[Tensor], states: list[int], axis: int = 0) -> None:
        """Count the tokens (N, T, C) that are joined to those of the picture."""
        if any(state & _ON_PICTURE for state in states) and all(each.ndim == 3 for each in arguments):
            others = [
                _shape(each)[axis] for each, state in zip(arguments, states, strict=True) if not state & _ON_PICTURE
            ]
            self.most_joined = max(self.most_joined, sum(others))

    def _is_vector(self, tensor: Tensor) -> bool:
        shape = _shape(tensor)
        shape = shape[1:] if shape and shape[0] == self._count else shape
        return sum(size > 1 for size in shape) <= 1


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operation, also in lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


# What torch raises for sparse tensors, and others without a memory of their own.
_WITHOUT_MEMORY = (RuntimeError, AttributeError)


def _storage(tensor: Tensor) -> int:
    """What identifies the memory of a tensor, as long as it exists."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except _WITHOUT_MEMORY:
        return id(tensor)


def _reference(tensor: Tensor) -> object:
    """What keeps the identity of the memory of a tensor, but not its values."""
    try:
        return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]  # torch's has no type hints
    except _WITHOUT_MEMORY:
        return tensor


def _view(tensor: Tensor) -> object:
    """What identifies a view among those of one memory."""
    try:
        return tensor.storage_offset(), tuple(_shape(tensor)), tensor.stride()
    except _WITHOUT_MEMORY:
        return None


def _shape(tensor: Tensor) -> torch.Size:
    """The shape; for an axis of a nested tensor whose length varies, a length of 2."""
    return torch.Size([each if isinstance(each, int) else 2 for each in shape_sizes(tensor)])


def _union(states: Any) -> int:
    union = _NOTHING
    for state in states:
        union |= state
    return union
