"""Targets: what a user asks of a model. Questions: the same, bound to one clean pass."""

from torchpeek.engine.targets.boxes import Box, BoxScores
from torchpeek.engine.targets.classes import (
    Classes,
    ClassesPerSample,
    ClassId,
    ClassLogOdds,
    ClassProbability,
    ClassScores,
    Contrast,
    ContrastScores,
    Predicted,
    TopClasses,
    as_target,
    class_logits,
    innermost,
    of_samples,
)
from torchpeek.engine.targets.neurons import Neuron, NeuronScores
from torchpeek.engine.targets.outputs import (
    Answered,
    Computed,
    ComputedScores,
    Output,
    OutputEntries,
    Pixels,
    PixelScores,
    Similarity,
    SimilarityScores,
)
from torchpeek.engine.targets.question import Question, Target

__all__ = [
    "Answered",
    "Box",
    "BoxScores",
    "ClassId",
    "ClassLogOdds",
    "ClassProbability",
    "ClassScores",
    "Classes",
    "ClassesPerSample",
    "Computed",
    "ComputedScores",
    "Contrast",
    "ContrastScores",
    "Neuron",
    "NeuronScores",
    "Output",
    "OutputEntries",
    "PixelScores",
    "Pixels",
    "Predicted",
    "Question",
    "Similarity",
    "SimilarityScores",
    "Target",
    "TopClasses",
    "as_target",
    "class_logits",
    "innermost",
    "of_samples",
]
