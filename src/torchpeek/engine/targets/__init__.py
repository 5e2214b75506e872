"""Targets: what a user asks of a model. Questions: the same, bound to one clean pass."""

from torchpeek.engine.targets.box_scores import BoxScores
from torchpeek.engine.targets.boxes import Box
from torchpeek.engine.targets.class_scores import ClassScores
from torchpeek.engine.targets.classes import Classes, ClassesPerSample, ClassId, Predicted, TopClasses, as_target
from torchpeek.engine.targets.contrast import Contrast, ContrastScores
from torchpeek.engine.targets.neurons import Neuron, NeuronScores
from torchpeek.engine.targets.output_parts import class_logits
from torchpeek.engine.targets.outputs import (
    Answered,
    Computed,
    ComputedScores,
    Output,
    OutputEntries,
)
from torchpeek.engine.targets.pixels import Pixels, PixelScores
from torchpeek.engine.targets.probabilities import (
    ClassLogOdds,
    ClassProbability,
    SigmoidLogOdds,
    SigmoidProbability,
)
from torchpeek.engine.targets.question import Question, Target, of_samples
from torchpeek.engine.targets.similarity import Similarity, SimilarityScores
from torchpeek.engine.targets.wrapping import innermost

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
    "SigmoidLogOdds",
    "SigmoidProbability",
    "Similarity",
    "SimilarityScores",
    "Target",
    "TopClasses",
    "as_target",
    "class_logits",
    "innermost",
    "of_samples",
]
