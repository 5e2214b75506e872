"""The target of `cam` and `evaluate`: from the words of the options to a Target."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from torchpeek.cli.model_output import embedding_part, is_detection, pixels_part
from torchpeek.cli.options import TargetOptions
from torchpeek.engine import Question, Target
from torchpeek.engine.targets import (
    Box,
    Classes,
    ClassLogOdds,
    ClassProbability,
    Contrast,
    Pixels,
    Predicted,
    SigmoidLogOdds,
    SigmoidProbability,
    Similarity,
    TopClasses,
)
from torchpeek.engine.targets.naming import class_index
from torchpeek.engine.targets.question import bind_target
from torchpeek.errors import ClassNotFound, InputError, OptionError, TargetError
from torchpeek.models import LoadedModel


def check_target(options: TargetOptions, top: int | None = None, contrast: int | None = None) -> None:
    """Raise OptionError for options that exclude each other."""
    if top is not None and options.classes:
        raise OptionError("--top and --class both choose classes; give one")
    by_option = {"--box": options.boxes, "--pixels": options.pixels, "--text": options.texts}
    named = [name for name, value in by_option.items() if value]
    if len(named) > 1:
        raise OptionError(f"{' and '.join(named)} are for models of different kinds; give one")
    if named and (top is not None or contrast is not None):
        other = "--top" if top is not None else "--contrast"
        raise OptionError(f"{other} is for models that return class scores, and {named[0]} is not; give one")
    if options.texts and options.classes:
        raise OptionError("--text is for models without classes, and --class is for models with classes; give one")
    if named and options.score != "logit":
        raise OptionError(f"--score {options.score} is for models that return class scores, and {named[0]} is not")
    if contrast is not None and options.score != "logit":
        raise OptionError(f"--contrast compares logits, and --score {options.score} asks for something else; give one")
    if named and len(options.classes or ()) > 1:
        raise OptionError(f"{named[0]} takes one --class; got {len(options.classes or ())}. Run it once for each class")


def make_target(
    options: TargetOptions, loaded: LoadedModel, top: int | None = None, contrast: int | None = None
) -> Target:
    """The target that the options name, with class names looked up in the model's own."""
    if options.texts:
        return TextSimilarity(loaded.embed(distinct_texts(options)), options.part or "")
    if loaded.texts is not None:
        raise OptionError(
            f"{loaded.spec} compares pictures with texts, and predicts no class. Next: name the text with --text "
            "'a photo of a cat', and repeat it for several texts"
        )
    # A class that is named twice, such as by name and by index, is explained once.
    classes = tuple(
        dict.fromkeys(class_index(_name_or_index(text), loaded.class_names) for text in options.classes or ())
    )
    if contrast is not None:
        return Contrast(_class_target(classes, top), contrast, part=options.part or "")
    boxes = box_ranks(options) if options.boxes else ()
    class_count = len(loaded.class_names) if loaded.class_names else None
    return OutputTarget(classes, top, boxes, options.pixels, options.score, options.part or "", class_count)


def distinct_texts(options: TargetOptions) -> tuple[str, ...]:
    """Each text once."""
    return tuple(dict.fromkeys(options.texts or ()))


def box_ranks(options: TargetOptions) -> tuple[int, ...]:
    """Each rank once; by default 0, the box with the highest score."""
    return tuple(dict.fromkeys(options.boxes or ())) or (0,)


@dataclass(frozen=True)
class OutputTarget:
    """A target for a model of any kind; its output decides which target it is.

    For a classifier: the classes, or the predicted one. For a detector: the boxes of these ranks, or the most confident
    box, of the class if there is one. For a segmentation: the pixels of the class, or of the class that wins the most.
    Raises InputError where this picture has no such box or pixel, and TargetError where the model is of another kind.
    """

    classes: Sequence[int] = ()
    top: int | None = None
    boxes: Sequence[int] = ()
    pixels: bool = False
    score: str = "logit"
    part: str = ""
    class_count: int | None = None
    picture: Sequence[int] | None = None

    @property
    def separate_branches(self) -> bool:
        """Whether boxes are named, each of which comes from its own branch of the model."""
        return bool(self.boxes)

    def for_pictures(self, shape: Sequence[int]) -> OutputTarget:
        """The target for pictures of this shape, (N, C, *grid)."""
        return replace(self, picture=tuple(shape))

    def bind(self, output: Any) -> Question:
        """The question about this output."""
        if self.boxes or is_detection(output):
            self._check_one_class("a detector returns boxes", "--box 0 --box 1 explains its two most confident")
            label = self.classes[0] if self.classes else None
            box = Box(self.boxes or (0,), label=label, part=self.part, names=self.class_count)
            return self._bind_to_picture(box, output)
        part = pixels_part(output, self.part)
        if self.pixels or part is not None:
            self._check_one_class(
                "a segmentation returns classes for each pixel", "--pixels --class explains one of them"
            )
            pixels = Pixels(self.classes[0] if self.classes else None, part=part or self.part)
            return self._bind_to_picture(pixels, output)
        if not self.part and (embedding := embedding_part(output)) is not None:
            raise TargetError(
                f"the model returns an embedding ({embedding}), and no class scores. For CLIP and SigLIP, load the "
                "whole model with its own weights as hf:NAME_OR_FOLDER, and use --text; for other models, use "
                "tp.targets.Similarity in Python"
            )
        target = _class_target(self.classes, self.top)
        if self.score in _TARGET_OF_SCORE:
            return _TARGET_OF_SCORE[self.score](target, part=self.part).bind(output)
        return replace(target, part=self.part).bind(output)

    def _bind_to_picture(self, target: Box | Pixels, output: Any) -> Question:
        """The question. Raises InputError where only this picture lacks the box or pixels; others may have them."""
        try:
            return target.bind(output) if self.picture is None else bind_target(target, output, self.picture)
        except ClassNotFound:
            raise
        except TargetError as error:
            message, count = re.subn(r"^(in )?(picture|sample) \d+", r"\1this picture", str(error))
            if not count:
                raise
            raise InputError(message) from error

    def _check_one_class(self, reason: str, instead: str) -> None:
        if self.top is not None or len(self.classes) > 1:
            got = "--top" if self.top is not None else f"{len(self.classes)} times --class"
            raise TargetError(f"{got} is for classifiers; {reason}: {instead}")


@dataclass(frozen=True, eq=False)
class TextSimilarity:
    """The similarity of a picture and texts, for a model that embeds both."""

    embeddings: Tensor  # (K, D)
    part: str = ""

    def bind(self, output: Any) -> Question:
        """The question about this output."""
        return Similarity(self.embeddings, part=self.part or embedding_part(output) or "").bind(output)


def _name_or_index(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() else text


_TARGET_OF_SCORE: Mapping[str, Callable[..., Target]] = {
    "probability": ClassProbability,
    "log-odds": ClassLogOdds,
    "sigmoid-probability": SigmoidProbability,
    "sigmoid-log-odds": SigmoidLogOdds,
}


def _class_target(classes: Sequence[int], top: int | None) -> TopClasses | Classes | Predicted:
    if top is not None:
        return TopClasses(top)
    return Classes(classes) if classes else Predicted()
