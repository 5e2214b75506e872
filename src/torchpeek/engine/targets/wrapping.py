"""Targets that are made from another target, which names classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Self

from torchpeek.engine.observed import layers_of_target
from torchpeek.engine.targets.class_scores import ClassScores
from torchpeek.engine.targets.classes import Predicted, as_target
from torchpeek.engine.targets.output_parts import is_named
from torchpeek.engine.targets.question import Target, of_samples
from torchpeek.errors import TargetError
from torchpeek.keywords import checked_keywords

_PREDICTED = Predicted()


@dataclass(frozen=True)
class WrappingTarget:
    """A target that asks something else of the classes that another target names.

    Args:
        of: A target that names classes, or what `explain(target=...)` takes for one.
        part: The path of the logits in the model's output, as in `Predicted`. "" for the part that `of` reads.
    """

    of: Any = _PREDICTED
    _: KW_ONLY
    part: str | int = ""

    def named(self, class_names: Sequence[str] | None) -> Self:
        """Replace class names by class indices.

        Args:
            class_names: The model's class names, by index; None where it has none.

        Returns:
            The target with class indices only.

        Raises:
            ClassNotFound: When a name is not among them.
            AmbiguousClass: When several classes have the name.

        Example:
            >>> target = tp.targets.ClassProbability("dog")
            >>> target.named(["cat", "dog"])
            ClassProbability(of=Classes(classes=[1], part=''), part='')
        """
        target = as_target(self.of, class_names)
        return replace(self, of=target, part=self.part if is_named(self.part) else getattr(target, "part", ""))

    def of_samples(self, first: int, last: int) -> Self:
        """Restrict the target to some of the samples.

        Args:
            first: The first of the samples.
            last: One after the last of them.

        Returns:
            The target for these samples.

        Example:
            >>> target = tp.targets.ClassProbability(torch.tensor([4, 5, 6]))
            >>> target.of_samples(1, 3).of.labels
            tensor([5, 6])
        """
        return replace(self, of=of_samples(as_target(self.of), first, last))

    def bind_classes(self, output: Any) -> ClassScores:
        """Bind the wrapped target to the output of the clean pass.

        Args:
            output: What the model returned for N samples.

        Returns:
            The wrapped target's question, with labels (N, K).

        Raises:
            TargetError: When the wrapped target does not name classes, or both name different parts of the output.

        Example:
            >>> target = tp.targets.ClassProbability(tp.targets.TopClasses(2))
            >>> target.bind_classes(torch.tensor([[0.1, 0.7, 0.2]])).labels
            tensor([[1, 2]])
        """
        target, name = as_target(self.of), type(self).__name__
        # A target that reads inner layers is not bound at all: this output does not hold them.
        question = None if layers_of_target(target) else _in_part(target, self.part, name).bind(output)
        if not isinstance(question, ClassScores):
            raise TargetError(f"{name} takes a target that names classes; got {self.of!r}")
        return question


def _in_part(target: Target, part: str | int, wrapper: str) -> Target:
    """The target, reading the part that the wrapping target names. Raises TargetError where it names another one."""
    own = getattr(target, "part", None)
    if not is_named(part) or own is None:
        return target
    if is_named(own):
        if str(own) != str(part):
            raise TargetError(f"{wrapper}(part={part!r}) is made from a target with part={own!r}; give part= once")
        return target
    in_part: Target = replace(target, part=part)  # type: ignore[type-var]  # all targets with a part are dataclasses
    return in_part


@checked_keywords
def innermost(target: Target) -> Target:
    """Unwrap a target that is made from another one, such as ClassProbability, SigmoidProbability or Contrast.

    Args:
        target: Any target.

    Returns:
        The innermost target; the target itself where it wraps none.

    Example:
        >>> target = tp.targets.ClassProbability(tp.targets.TopClasses(2))
        >>> tp.targets.innermost(target)
        TopClasses(k=2, part='')
    """
    while isinstance(target, WrappingTarget):
        target = as_target(target.of)
    return target
