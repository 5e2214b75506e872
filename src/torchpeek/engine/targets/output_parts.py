"""Find the tensor that a target reads among those that a model returned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torchpeek.engine.numerics import at_least_float32
from torchpeek.errors import TargetError, closest, shown, type_shown
from torchpeek.hooks import containers
from torchpeek.keywords import checked_keywords

# Names that say which tensor holds the class logits, as models of torchvision and transformers use them.
LOGIT_NAMES = ("logits", "logit", "logits_per_image", "out")

# The names among them that say so of one number for each sample, too.
_SINGLE_LOGIT_NAMES = ("logits", "logit")

# Names of an embedding of the whole input. It has the shape of class logits and is none.
EMBEDDING_NAMES = ("image_embeds", "embeddings", "pooler_output", "last_hidden_state")

# Names of the boxes of a detector, whose four numbers are not classes.
_BOX_NAMES = ("boxes", "pred_boxes")

# What the names of tensors begin with that are only for training: torchvision's auxiliary classifiers, and losses.
_TRAINING_NAMES = ("aux", "loss")


def output_tensors(output: Any) -> dict[str, Tensor]:
    """Path -> floating-point tensor of what a model returned; of an object that is no container, its attributes."""
    if isinstance(output, Tensor):  # the most common case, without a walk
        return {"": output} if output.is_floating_point() else {}
    return {path: tensor for path, tensor in containers.leaves(_readable(output)) if tensor.is_floating_point()}


def resolve_part(output: Any, part: str, preferred: Sequence[str]) -> str:
    """The path of the tensor to read.

    Args:
        output: What the model returned.
        part: A path or another spelling of it, such as a field of a named tuple; "" where the user named none.
        preferred: Names that say what a tensor is. Without `part`, the tensor with the first of these names is meant,
            or the only tensor.

    Raises:
        TargetError: When there is no such tensor, or more than one could be meant.
    """
    tensors = {path: tensor for path, tensor in output_tensors(output).items() if tensor.ndim}
    if not tensors:
        _check_real(output)
        content = "one number for all the samples" if isinstance(output, Tensor) else "no floating-point tensor"
        raise TargetError(
            f"the model returned {type_shown(output)} of {content}; a score is read from a tensor whose first "
            "axis is the samples. Wrap the model so that it returns one"
        )
    if is_named(part):
        return _named_path(output, tensors, part)
    path = _path_with_name(output, tensors, preferred) or _only_path(output, tensors)
    if path is None:
        raise TargetError(
            "the model's output has several parts, and the target does not name one; allowed for part=: "
            f"{described_parts(output, list(tensors))}"
        )
    return path


def is_named(part: str | int) -> bool:
    """Whether `part` names a tensor. The first of a tuple may be named by the number 0, too."""
    return not (part is None or (isinstance(part, str) and not part))


def tensor_at(output: Any, part: str) -> Tensor:
    """(N, ...): the tensor at the path `part` of what the model returned, at least float32."""
    tensor = output_tensors(output).get(part)
    if tensor is None:
        raise TargetError(f"the model returned {part!r} on the clean pass, but not on a later pass")
    tensor = at_least_float32(tensor)
    return tensor.unsqueeze(1) if tensor.ndim == 1 else tensor


@checked_keywords
def class_logits(output: Any, part: str = "") -> Tensor:
    """Find the class logits in what a classifier returned.

    They are the part that `part` names. Without `part`, they are the output itself, its part `logits`, `logit`,
    `logits_per_image` or `out`, or its only tensor. Tensors for training (`aux`, `loss`) and embeddings with a known
    name do not count. If more than one tensor could hold the logits, none is chosen. The output of a detector has no
    class logits: the four numbers of a box are not classes.

    Args:
        output: What the model returned for N samples.
        part: The path of the logits, as `tp.record` names it, or the name of a field of a named tuple.

    Returns:
        (N, classes), at least float32. A tensor (N,) is (N, 1), where it is the output itself, or `part` or the name
        `logits` points to it.

    Raises:
        TargetError: When there are none, or more than one tensor could hold them.

    Example:
        >>> output = {"logits": torch.zeros(2, 10), "hidden": torch.zeros(2, 5, 8)}
        >>> tp.targets.class_logits(output).shape
        torch.Size([2, 10])
        >>> tp.targets.class_logits((torch.zeros(2), torch.zeros(2, 64)), part="0").shape
        torch.Size([2, 1])
    """
    return at_least_float32(locate_logits(with_class_axis(output), part)[1])


def with_class_axis(output: Any) -> Any:
    """The output; a tensor (N,), one logit for each sample, as (N, 1)."""
    return output.unsqueeze(1) if isinstance(output, Tensor) and output.ndim == 1 else output


def locate_logits(output: Any, part: str = "") -> tuple[str, Tensor]:
    """The path of the class logits in what a model returned, and the logits (N, classes). See `class_logits`."""
    if isinstance(output, Tensor) and not is_named(part) and output.ndim == 2 and output.is_floating_point():
        return "", output  # as most classifiers return them
    tensors = {path: tensor for path, tensor in output_tensors(output).items() if tensor.ndim}
    names = _names(output)
    if is_named(part):
        path: str | None = _named_path(output, tensors, part)
    elif any(name in _BOX_NAMES for path in tensors for name in names[path]):
        path = None
    else:
        path = _path_with_name(output, tensors, LOGIT_NAMES)
        if path is None:
            possible = _possible(output, tensors, excluded=EMBEDDING_NAMES)
            path = possible[0] if len(possible) == 1 else None
            if len(possible) > 1:
                raise TargetError(_ambiguous_logits(output, possible))
    if path is not None:
        tensor = tensors[path]
        if tensor.ndim == 1 and (is_named(part) or any(name in _SINGLE_LOGIT_NAMES for name in names[path])):
            tensor = tensor.unsqueeze(1)
        if tensor.ndim == 2:
            return path, tensor
    _check_real(output)
    shapes = {f"{name!r} " * bool(name) + str(tuple(each.shape)) for name, each in output_tensors(output).items()}
    got = f"{type(output).__name__} of {', '.join(sorted(shapes)) or 'no floating-point tensor'}"
    instead = f"and part {part!r} is none" if is_named(part) else "or the part of that shape"
    raise TargetError(
        f"the model returned a {got}; class scores are read from a (N, classes) tensor, {instead}. For other outputs "
        "there are targets in tp.targets: Pixels for a segmentation, Box for a detector, Similarity for an embedding, "
        "Output for a regression or a single number (N,), SigmoidProbability for a single logit (N,), Computed for any "
        "function"
    )


def described_parts(output: Any, paths: Sequence[str]) -> str:
    """The tensors at these paths, each with its spellings and its shape: `'0' or 'logits' (2, 10), '1' (2, 64)`."""
    tensors, spellings = output_tensors(output), containers.spellings(_readable(output))
    return ", ".join(
        f"{' or '.join(map(repr, spellings.get(path, (path,))))} {tuple(tensors[path].shape)}" for path in paths
    )


def _ambiguous_logits(output: Any, possible: Sequence[str]) -> str:
    """The error text where more than one tensor could hold the class logits."""
    # One number for each sample is more likely a logit than a row of numbers, which may be features.
    tensors = output_tensors(output)
    example = min(possible, key=lambda path: (tensors[path].ndim > 2, tensors[path].ndim))
    return (
        f"the model returned {type_shown(output)} of several tensors, and more than one could be meant; class "
        f"scores are read from one of (N, classes) or (N,). Choose it with part=: {described_parts(output, possible)}. "
        f"For example target=tp.targets.Predicted(part={example!r}), or in a shell --part {example}"
    )


def _readable(output: Any) -> Any:
    """The output, or the attributes of an object that holds tensors and is no container."""
    has_tensors = any(tensor.is_floating_point() for _, tensor in containers.leaves(output))
    if has_tensors or isinstance(output, Tensor) or not hasattr(output, "__dict__"):
        return output
    return {"logits": getattr(output, "logits", None), **vars(output)}  # `logits` may be a property


def _names(output: Any) -> dict[str, tuple[str, ...]]:
    """Path -> the names of that tensor in its container: the last key of each spelling."""
    spellings = containers.spellings(_readable(output))
    return {path: tuple(each.rpartition(".")[2] for each in of_path) for path, of_path in spellings.items()}


def _named_path(output: Any, tensors: dict[str, Tensor], part: str) -> str:
    """The path that `part` spells. Raises TargetError where there is none."""
    if not isinstance(part, (str, int)):
        raise TargetError(f"part is {shown(part)}; allowed: the name or the number of a part of the model's output")
    part = str(part)
    if part in tensors:
        return part
    spellings = containers.spellings(_readable(output))
    found = [path for path in tensors if part in spellings[path]]
    if found:
        return found[0]
    if list(tensors) == [""]:
        raise TargetError(f"the model returns one tensor, and no part {part!r}; leave part= out")
    known = [spelling for path in tensors for spelling in spellings[path]]
    raise TargetError(
        f"the model's output has several parts, and no tensor at {part!r}{closest(part, known)}; allowed for part=: "
        f"{described_parts(output, list(tensors))}"
    )


def _path_with_name(output: Any, tensors: dict[str, Tensor], preferred: Sequence[str]) -> str | None:
    """The path of the tensor with the first of these names: of the outermost container, or the only one inside."""
    names, spellings = _names(output), containers.spellings(_readable(output))
    for name in preferred:
        outermost = [path for path in tensors if name in spellings[path]]
        inside = [path for path in tensors if name in names[path]]
        if outermost or len(inside) == 1:
            return (outermost or inside)[0]
    return None


def _only_path(output: Any, tensors: dict[str, Tensor]) -> str | None:
    """The path of the only tensor that can be meant; None where there are several."""
    if len(tensors) == 1:
        return next(iter(tensors))
    possible = _possible(output, tensors)
    return possible[0] if len(possible) == 1 else None


def _possible(output: Any, tensors: dict[str, Tensor], excluded: Sequence[str] = ()) -> list[str]:
    """The paths of the tensors that hold something for each sample and are not only for training."""
    names = _names(output)
    # A tensor with one axis whose length is not that of the others' first axis is the same for all samples, such as a
    # temperature.
    counts = {len(tensor) for tensor in tensors.values() if tensor.ndim > 1}
    return [
        path
        for path, tensor in tensors.items()
        if tensor.numel()
        and (tensor.ndim > 1 or not counts or len(tensor) in counts)
        and not any(name.startswith(_TRAINING_NAMES) or name in excluded for name in names[path])
    ]


def _check_real(output: Any) -> None:
    """Raise TargetError where the tensors of an output are complex. To be called where no real tensor was found."""
    if any(tensor.is_complex() for _, tensor in containers.leaves(output)) and not output_tensors(output):
        raise TargetError(
            "the model returned complex numbers; a score is a real number. Next: wrap the model so that it returns "
            "output.abs(), or give tp.targets.Computed(lambda output, rows: output.abs())"
        )
