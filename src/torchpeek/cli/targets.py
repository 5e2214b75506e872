"""What `torchpeek cam` asks of a model: from the words of its options to a target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from torchpeek.engine import Question, Target
from torchpeek.engine.targets import Box, Classes, Contrast, Pixels, Predicted, Similarity, TopClasses
from torchpeek.engine.targets.naming import class_index
from torchpeek.errors import ClassNotFound, InputError, OptionError, TargetError
from torchpeek.hooks import containers
from torchpeek.models import LoadedModel


@dataclass(frozen=True)
class Wanted:
    """The options that say what is asked. Raises OptionError for those that do not go together."""

    classes: Sequence[str]
    top: int | None
    contrast: int | None
    boxes: Sequence[int]
    pixels: bool
    texts: Sequence[str]

    def __post_init__(self) -> None:
        one_of = {"--top": self.top is not None, "--class": bool(self.classes)}
        if all(one_of.values()):
            raise OptionError("--top and --class both choose classes; give one")
        kinds = {"--box": bool(self.boxes), "--pixels": self.pixels, "--text": bool(self.texts)}
        given = [name for name, is_given in kinds.items() if is_given]
        if len(given) > 1:
            raise OptionError(f"{' and '.join(given)} are for models of different kinds; give one")
        if given and (self.top is not None or self.contrast is not None):
            other = "--top" if self.top is not None else "--contrast"
            raise OptionError(f"{other} is for models that return class scores, and {given[0]} is not; give one")
        if self.texts and self.classes:
            raise OptionError("--text is for models without classes, and --class for those with some; give one")
        if given and len(self.classes) > 1:
            raise OptionError(f"{given[0]} takes one --class; got {len(self.classes)}. Run it once for each")

    @property
    def ranks(self) -> Sequence[int]:
        """Of the boxes, each once; the surest where none is asked for."""
        return tuple(dict.fromkeys(self.boxes)) or (0,)

    @property
    def asked_texts(self) -> Sequence[str]:
        """Each once."""
        return tuple(dict.fromkeys(self.texts))

    def target(self, loaded: LoadedModel) -> Target:
        """What is meant, of that model, with the names of classes looked up."""
        if self.texts:
            return TextSimilarity(loaded.embed(self.asked_texts))
        if loaded.texts is not None:
            raise OptionError(
                f"{loaded.spec} compares pictures with texts, and predicts no class. Next: say with which, --text "
                "'a photo of a cat', several times for several"
            )
        # By name and by index, say: each is explained once.
        classes = tuple(dict.fromkeys(class_index(_class(each), loaded.class_names) for each in self.classes))
        if self.contrast is not None:
            return Contrast(_of_classes(classes, self.top), self.contrast)
        return Suited(classes, self.top, self.ranks if self.boxes else (), self.pixels)


@dataclass(frozen=True)
class Suited:
    """What is asked of a model of any kind; which kind it is, its output says.

    Of a classifier the classes, or the predicted one. Of a detector the boxes of these ranks, or its surest one, of the
    class if one is given. Of a segmentation the pixels of the class, or of the one that wins most. Raises InputError
    where the picture has nothing of what is asked for, and TargetError where it is not for such a model.
    """

    classes: Sequence[int] = ()
    top: int | None = None
    boxes: Sequence[int] = ()
    pixels: bool = False

    def bind(self, output: Any) -> Question:
        if self.boxes or is_detection(output):
            self._one_class("a detector returns boxes", "--box 0 --box 1 asks about its two surest")
            label = self.classes[0] if self.classes else None
            return _in_this_picture(Box(self.boxes or (0,), label=label), output)
        part = pixels_part(output)
        if self.pixels or part is not None:
            self._one_class("a segmentation returns classes for each pixel", "--pixels --class asks about one of them")
            return _in_this_picture(Pixels(self.classes[0] if self.classes else None, part=part or ""), output)
        if embedding_part(output) is not None:
            raise TargetError(
                f"the model returns an embedding ({embedding_part(output)}), and no class scores. CLIP and SigLIP, "
                "loaded whole as hf:NAME_OR_FOLDER with their own weights, are asked with --text; in Python "
                "tp.targets.Similarity compares it with any embedding"
            )
        return _of_classes(self.classes, self.top).bind(output)

    def _one_class(self, why: str, instead: str) -> None:
        if self.top is not None or len(self.classes) > 1:
            given = "--top" if self.top is not None else f"{len(self.classes)} times --class"
            raise TargetError(f"{given} is for classifiers; {why}: {instead}")


@dataclass(frozen=True, eq=False)
class TextSimilarity:
    """How alike a picture and texts are, to a model that embeds both."""

    embeddings: Tensor  # (K, D)

    def bind(self, output: Any) -> Question:
        return Similarity(self.embeddings, part=embedding_part(output) or "").bind(output)


def is_detection(output: Any) -> bool:
    """Whether it is what a detector returns: one dict of boxes for each picture, or boxes for each query."""
    if isinstance(output, (list, tuple)):
        return bool(output) and all(isinstance(each, dict) and {"boxes", "scores"} <= each.keys() for each in output)
    return "pred_boxes" in _parts(output)


def pixels_part(output: Any) -> str | None:
    """Where in the output the (N, classes, H, W) of a segmentation is; None where there is none, or it is not clear."""
    parts = {path: tensor for path, tensor in _parts(output).items() if tensor.ndim >= 4}
    named = next((name for name in ("out", "logits") if name in parts), None)
    alone = next(iter(parts), None) if len(parts) == len(_parts(output)) == 1 else None
    return named or alone


def embedding_part(output: Any) -> str | None:
    """Where in the output of a model of transformers the embedding of the picture is; None beside class scores."""
    parts = _parts(output)
    if any(name.startswith("logits") for name in parts):
        return None
    return next((name for name in ("image_embeds", "pooler_output") if name in parts), None)


def _parts(output: Any) -> dict[str, Tensor]:
    return {path: tensor for path, tensor in containers.leaves(output) if tensor.is_floating_point()}


def _class(given: str) -> int | str:
    return int(given) if given.isascii() and given.isdigit() else given


def _of_classes(classes: Sequence[int], top: int | None) -> Target:
    if top is not None:
        return TopClasses(top)
    return Classes(classes) if classes else Predicted()


def _in_this_picture(target: Box | Pixels, output: Any) -> Question:
    """The question, or an InputError where that picture has nothing of the kind, though others may."""
    try:
        return target.bind(output)
    except ClassNotFound:
        raise
    except TargetError as error:
        words, count = re.subn(r"^(in )?(picture|sample) \d+", r"\1this picture", str(error))
        if not count:
            raise
        raise InputError(words) from error
