"""Target for pixels of a segmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchpeek.engine.targets.classes import ClassId
from torchpeek.engine.targets.naming import check_range, class_index
from torchpeek.engine.targets.output_parts import resolve_part, tensor_at
from torchpeek.errors import ClassNotFound, TargetError, notify, shown, type_shown
from torchpeek.keywords import checked_methods


@checked_methods
@dataclass(frozen=True, eq=False)
class PixelScores:
    """The mean logit of classes over fixed pixels of a segmentation.

    Args:
        labels: (N, K), int64: the class indices.
        masks: (N, K, *grid), bool: the pixels.
        part: The path of the logits in the model's output; "" where the output is the tensor itself.
        kind: What a score is.
        class_axis: Whether the logits are (N, classes, *grid). They are (N, *grid) otherwise.
        threshold: The value above which a pixel is foreground, for logits of one class.

    Source: Seg-Grad-CAM, arXiv:2002.11434, which takes the sum of the logits.

    Example:
        >>> question = tp.targets.PixelScores(torch.tensor([[0]]), torch.tensor([[[[True, False]]]]))
        >>> question(torch.tensor([[[[1.0, 5.0]], [[3.0, 2.0]]]]), torch.tensor([0]))
        tensor([[1.]])
    """

    labels: Tensor  # (N, K), int64
    masks: Tensor  # (N, K, *grid), bool
    part: str = ""
    kind: str = "mean logit of the masked pixels"
    class_axis: bool = True
    threshold: float = 0.0
    positional: ClassVar[bool] = True

    def __call__(self, output: Any, rows: Tensor) -> Tensor:
        """Compute the scores of an output.

        Args:
            output: What the model returned for n samples.
            rows: (n,), int64: the clean sample that each of them is a version of.

        Returns:
            (n, K) scores, at least float32.

        Raises:
            TargetError: When the output has no tensor at `part`.

        Example:
            >>> question = tp.targets.PixelScores(torch.tensor([[1]]), torch.ones(1, 1, 1, 2, dtype=torch.bool))
            >>> question(torch.tensor([[[[1.0, 5.0]], [[3.0, 2.0]]]]), torch.tensor([0]))
            tensor([[2.5000]])
        """
        logits = self.logits(output)  # (n, classes, *grid)
        rows = rows.to(logits.device)
        labels, masks = self.labels.to(logits.device)[rows], self.masks.to(logits.device)[rows]
        index = labels.reshape(*labels.shape, *(1 for _ in logits.shape[2:])).expand(-1, -1, *logits.shape[2:])
        label_logits = logits.gather(1, index)  # (n, K, *grid)
        return torch.where(masks, label_logits, 0).flatten(2).sum(2) / masks.flatten(2).sum(2)

    def logits(self, output: Any) -> Tensor:
        """Read the logits of all classes at all pixels.

        Args:
            output: What the model returned for n samples.

        Returns:
            (n, classes, *grid), at least float32.

        Raises:
            TargetError: When the output has no tensor at `part`.

        Example:
            >>> question = tp.targets.Pixels(class_axis=False).bind(torch.randn(2, 4, 5))
            >>> question.logits(torch.zeros(2, 4, 5)).shape
            torch.Size([2, 1, 4, 5])
        """
        logits = tensor_at(output, self.part)
        return logits if self.class_axis else logits.unsqueeze(1)

    def shares(self, output: Any) -> Tensor:
        """Compute which share of the pixels each class wins. The foreground of one class wins where it is present.

        Args:
            output: What the model returned for n samples.

        Returns:
            (n, classes), in [0, 1], float64.

        Raises:
            TargetError: When the output has no tensor at `part`.

        Example:
            >>> question = tp.targets.Pixels().bind(torch.tensor([[[[-1.0, 2.0, 3.0, -4.0]]]]))
            >>> question.shares(torch.tensor([[[[-1.0, 2.0, 3.0, -4.0]]]]))
            tensor([[0.5000]], dtype=torch.float64)
        """
        return _pixels_of_classes(self.logits(output).detach(), self.threshold).flatten(2).double().mean(2)

    def select(self, rows: slice | Tensor, columns: slice) -> PixelScores:
        """Select some of the samples and of the scores.

        Args:
            rows: Which of the N samples.
            columns: Which of the K scores.

        Returns:
            The question of these samples and scores.

        Example:
            >>> question = tp.targets.Pixels(1, mask=torch.ones(4, 4)).bind(torch.rand(2, 3, 4, 4))
            >>> question.select(slice(0, 1), slice(None)).masks.shape
            torch.Size([1, 1, 4, 4])
        """
        return replace(self, labels=self.labels[rows][:, columns], masks=self.masks[rows][:, columns])


@checked_methods
@dataclass(frozen=True, eq=False)
class Pixels:
    """Pixels of a segmentation (N, classes, *grid): the mean of a class's logit over them.

    A segmentation of one class, (N, 1, *grid) or (N, *grid), has a foreground: the pixels whose logit is above 0.

    Args:
        of: A class, by index or name. None: for each sample the class that wins most pixels. The foreground of a
            segmentation of one class is class 0.
        mask: (*grid) or (N, *grid), of the output's size, True at the pixels. None: those that the class wins on the
            clean pass. Of one class, these are the foreground.
        part: The path of a tensor in the model's output, as `tp.record` names it. "" for the only tensor, or for the
            one with the name `out` or `logits`.
        samples: Which entries of a mask (N, *grid) belong to the samples; None for all.
        class_axis: True for outputs (N, classes, *grid), False for outputs (N, *grid) of one class. None: by the number
            of axes of the pictures, or of the mask.
        threshold: For one class, the value above which a pixel is foreground: 0 for logits, 0.5 for probabilities.
            None: 0, unless all values are in [0, 1].
        picture: The shape of the pictures, (N, C, *grid); the pass sets it.

    Source: Seg-Grad-CAM, arXiv:2002.11434, which takes the sum of the logits.

    Example:
        >>> logits = torch.tensor([[[[1.0, 5.0]], [[3.0, 2.0]]]])
        >>> tp.targets.Pixels(0).bind(logits).masks
        tensor([[[[False,  True]]]])
        >>> tp.targets.Pixels().bind(torch.tensor([[[[-1.0, 5.0]]]])).masks
        tensor([[[[False,  True]]]])
    """

    of: ClassId | None = None
    mask: Tensor | None = None
    part: str = ""
    samples: slice | None = None
    _: KW_ONLY
    class_axis: bool | None = None
    threshold: float | None = None
    picture: Sequence[int] | None = None

    def bind(self, output: Any) -> PixelScores:
        """Bind the target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The question, with labels (N, 1) and masks (N, 1, *grid).

        Raises:
            TargetError: When the output is no segmentation, the mask does not fit, or a sample has no such pixel.
            ClassNotFound: When the model does not have the class.

        Example:
            >>> target = tp.targets.Pixels(0, mask=torch.tensor([[True, True]]))
            >>> target.bind(torch.tensor([[[[1.0, 5.0]], [[3.0, 2.0]]]])).labels
            tensor([[0]])
        """
        part = resolve_part(output, self.part, ("out", "logits"))
        logits, mask = tensor_at(output, part).detach(), None if self.mask is None else _bool_mask(self.mask)
        if logits.ndim < (2 if self.class_axis is False else 3):
            raise TargetError(f"Pixels reads outputs (N, classes, *grid); the model returned {tuple(logits.shape)}")
        class_axis = self._has_class_axis(logits, mask)
        if not class_axis:
            logits = logits.unsqueeze(1)  # (N, 1, *grid)
        binary = logits.shape[1] == 1
        threshold = self._foreground_threshold(logits) if binary and mask is None else 0.0
        won = _pixels_of_classes(logits, threshold)  # (N, classes, *grid)
        if self.of is None:
            labels = won.flatten(2).sum(2).argmax(1, keepdim=True)
        else:
            labels = torch.tensor([[class_index(self.of, None)]], device=logits.device).expand(len(logits), -1)
            if binary and bool((labels != 0).any()):
                raise ClassNotFound(
                    f"no class {int(labels[0])}: the segmentation {tuple(logits.shape)} has one class, class 0, whose "
                    "pixels are the foreground. For its background, give a mask"
                )
            check_range(labels, logits.shape[1])
        kind = PixelScores.kind
        if mask is None:
            masks = won.take_along_dim(labels.view(-1, 1, *(1 for _ in logits.shape[2:])), 1).squeeze(1)
            if binary:
                kind = f"mean logit of the foreground, where the logit is above {threshold:g}"
                if threshold:
                    kind = f"mean value of the foreground, where the value is above {threshold:g}"
        else:
            masks = self._masks_of_samples(mask.to(logits.device), logits)
        if empty := (~masks.flatten(1).any(1)).nonzero().flatten().tolist():
            reason = "the mask is empty" if mask is not None else f"no pixel is of class {int(labels[empty[0]])}"
            if binary and mask is None:
                reason = f"no pixel is foreground: the largest value is {float(logits[empty[0]].max()):.3g}"
            raise TargetError(f"in sample {empty[0]} {reason}, so there is no score. Give another class or mask")
        if binary and mask is None and (whole := masks.flatten(1).all(1).nonzero().flatten().tolist()):
            notify(
                f"every pixel of sample {whole[0]} is foreground: all values are above {threshold:g}. If the output is "
                "no logit, give Pixels(threshold=...) or a mask"
            )
        return PixelScores(labels, masks.unsqueeze(1), part, kind, class_axis, threshold)

    def for_pictures(self, shape: Sequence[int]) -> Pixels:
        """Read outputs with the help of the number of axes of the pictures.

        Args:
            shape: The shape of the pictures, (N, C, *grid).

        Returns:
            The target for these pictures.

        Example:
            >>> target = tp.targets.Pixels().for_pictures((2, 3, 16, 16))
            >>> target.bind(torch.randn(2, 8, 8)).masks.shape
            torch.Size([2, 1, 8, 8])
        """
        return replace(self, picture=tuple(shape))

    def _has_class_axis(self, logits: Tensor, mask: Tensor | None) -> bool:
        """Whether the logits are (N, classes, *grid), and not (N, *grid). Raises TargetError where that is unknown."""
        if self.class_axis is not None:
            if not isinstance(self.class_axis, bool):
                raise TargetError(f"Pixels(class_axis={shown(self.class_axis)}): allowed: True, False, or None")
            return self.class_axis
        if mask is not None:
            fits = [tuple(mask.shape) in _mask_shapes(logits.shape, first) for first in (2, 1)]
            if fits[0] != fits[1]:
                return fits[0]
        if self.picture is None:
            return True
        axes, same = len(self.picture) - 2, tuple(logits.shape[1:]) == tuple(self.picture[1:])
        if logits.ndim - 1 == axes and _is_scaled(logits.shape[1:], self.picture[2:]):
            return False
        if logits.ndim - 1 != axes and (logits.ndim > 3 or (logits.ndim - 2 == axes and not same)):
            return True
        raise TargetError(
            f"the model returned {tuple(logits.shape)} for pictures {tuple(self.picture)}; this may be (N, classes, "
            "*grid), or (N, *grid) of one class. Give Pixels(class_axis=True) for the first, class_axis=False for the "
            "second"
        )

    def _foreground_threshold(self, logits: Tensor) -> float:
        """The value above which a pixel is foreground. Raises TargetError for what may be probabilities."""
        if self.threshold is not None:
            if not isinstance(self.threshold, (int, float)) or not -math.inf < self.threshold < math.inf:
                raise TargetError(f"Pixels(threshold={self.threshold!r}): give a number, 0 for logits")
            return float(self.threshold)
        if bool((logits >= 0).all() & (logits <= 1).all()):
            raise TargetError(
                "all values of this segmentation of one class are in [0, 1], so they may be probabilities, of which "
                "every pixel is above 0. Give Pixels(threshold=0.5) for probabilities, or threshold=0 for logits"
            )
        return 0.0

    def _masks_of_samples(self, mask: Tensor, logits: Tensor) -> Tensor:
        """(N, *grid): the user's mask for each sample. Raises TargetError where it does not fit."""
        if self.samples is not None and mask.ndim == logits.ndim - 1:
            mask = mask[self.samples]
        allowed = (tuple(logits.shape[2:]), (len(logits), *logits.shape[2:]))
        if tuple(mask.shape) not in allowed:
            raise TargetError(
                f"mask has shape {tuple(mask.shape)}; allowed: {allowed[0]}, or {allowed[1]}, the size of the "
                "model's output, which may be smaller than the input"
            )
        return mask.expand(len(logits), *logits.shape[2:])

    def of_samples(self, first: int, last: int) -> Pixels:
        """Restrict the target to some of the samples.

        Args:
            first: The first of the samples.
            last: One after the last of them.

        Returns:
            The target for these samples: of a mask (N, *grid) it uses theirs.

        Example:
            >>> target = tp.targets.Pixels(1, mask=torch.ones(4, 8, 8))
            >>> target.of_samples(1, 3).samples
            slice(1, 3, None)
        """
        return replace(self, samples=slice(first, last))

    def named(self, class_names: Sequence[str] | None) -> Pixels:
        """Replace the class name in `of` by its class index.

        Args:
            class_names: The model's class names, by index; None where it has none.

        Returns:
            The target with a class index, or without a class.

        Raises:
            ClassNotFound: When the name is not among them.
            AmbiguousClass: When several classes have the name.

        Example:
            >>> target = tp.targets.Pixels("road")
            >>> target.named(["sky", "road"]).of
            1
        """
        return self if self.of is None else replace(self, of=class_index(self.of, class_names))


def _pixels_of_classes(logits: Tensor, threshold: float) -> Tensor:
    """(N, classes, *grid), bool: the pixels that each class wins; of one class, its foreground above the threshold."""
    if logits.shape[1] == 1:
        return logits > threshold
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, logits.argmax(1, keepdim=True), True)


def _is_scaled(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Whether a grid is the picture's size divided by one number, or less by one number as after unpadded layers."""
    pairs = list(zip(grid, size, strict=True))
    less = {whole - part for part, whole in pairs}
    first_part, first = pairs[0]
    return len(less) == 1 or all(part * first == whole * first_part for part, whole in pairs)


def _mask_shapes(shape: torch.Size, first: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes that a mask may have if the grid of an output of this shape starts at axis `first`."""
    return tuple(shape[first:]), (shape[0], *shape[first:])


def _bool_mask(mask: Any) -> Tensor:
    """(*grid) or (N, *grid), bool. Raises TargetError for other values than True and False, or 1 and 0."""
    try:
        tensor = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(f"mask is {type_shown(mask)}; allowed: a tensor of bool, or of 0 and 1") from None
    if tensor.dtype != torch.bool and not bool(((tensor == 0) | (tensor == 1)).all()):
        raise TargetError("mask has other values than 0 and 1. A mask selects pixels: give mask > 0.5, for example")
    return tensor.bool()
