"""The options that several commands share. Nothing here imports torch.

A group is a frozen dataclass. A command takes it as one parameter, and each field becomes an option of that command.
A single option that is in no group is an annotated type.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from cyclopts import Group, Parameter

from torchpeek.cli.option_values import (
    Colormap,
    MethodName,
    MetricName,
    Scale,
    as_text,
    not_empty,
    number,
    numbers,
    whole,
)

# The panels of a help page, in this order.
MODEL = Group.create_ordered("Model")
INPUT = Group.create_ordered("Input")
TARGET = Group.create_ordered("Target")
LAYERS = Group.create_ordered("Layers")
METHOD = Group.create_ordered("Method")
METRIC = Group.create_ordered("Metric")
DRAWING = Group.create_ordered("Drawing")
OUTPUT = Group.create_ordered("Output")


def _default_words(value: Any) -> str | None:
    """The default on the help page. Flags and options without a value show none."""
    if value is None or value is False:
        return None
    return ", ".join(value) if isinstance(value, list) else str(value)


def option(text: str, *names: str, **more: Any) -> Parameter:
    """One option: its help text, its names if they are not the name of the field, and more fields of a Parameter.

    No option has a second form such as `--no-overwrite` or `--empty-layer`.
    """
    if names:
        more["name"] = names
    return Parameter(help=text, negative="", show_default=_default_words, **more)


def choice(text: str, *names: str, **more: Any) -> Parameter:
    """An option whose Literal type lists what a shell completes, and that takes other texts, too."""
    return option(text, *names, converter=as_text, show_choices=False, **more)


LONGEST_AXIS = 10_000_000
"""The largest number of --input-size: more is a slip of the keyboard."""

STDIN = "/dev/stdin"
"""How a picture or a list that comes from standard input is named; "-" is its short form."""

Pictures: TypeAlias = Annotated[
    Path,
    option(
        'Picture files, globs, and folders, without their subfolders. "-" reads one picture from standard input.',
        converter=as_text,
    ),
]

Device: TypeAlias = Annotated[Literal["cpu", "cuda", "mps"], choice("cpu, cuda, cuda:1 or mps.", group=MODEL)]

TensorBoardFolder: TypeAlias = Annotated[
    Path | None, option("Also write the results to this folder, for TensorBoard.", group=OUTPUT)
]


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True)
class ModelOptions:
    """Which model, with which weights."""

    model: Annotated[
        str,
        option(
            "torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER (transformers), or package.module:callable, which "
            "may be in the working directory."
        ),
    ]
    weights: Annotated[
        Path | None,
        option(
            '"random", a file (.safetensors, or a state_dict written by torch.save), or the name of torchvision '
            "weights. By default, the pretrained weights. Random weights need no download, and are those of --seed."
        ),
    ] = None
    seed: Annotated[
        int,
        option(
            "The seed of everything that is drawn at random: random weights, and what methods and metrics draw.",
            **whole(0, 2**63 - 1),
        ),
    ] = 0
    trust_pickle: Annotated[bool, option("Load a weights file that can run code.")] = False
    trust_remote_code: Annotated[bool, option("Run the code that a transformers checkpoint contains.")] = False


@Parameter(name="*", group=INPUT)
@dataclass(frozen=True)
class InputOptions:
    """How pictures become the model's input, where the model does not say it, or something else is wanted."""

    max_size: Annotated[
        int | None,
        option(
            "Reduce pictures whose width or height is larger than this number of pixels, before the model's "
            "preprocessing. By default, no picture is reduced.",
            **whole(1, words="a number of pixels, 1 or more"),
        ),
    ] = None
    grey: Annotated[
        bool, option("The input has one channel. Its values are 0 to 1, unless --mean and --std are named.")
    ] = False
    input_size: Annotated[
        list[str] | None,
        option(
            "The size of the input: HEIGHT WIDTH, one number for a square, or CHANNELS HEIGHT WIDTH. A square input is "
            "the centre of the picture; to any other size, the whole picture is resized.",
            validator=numbers(1, LONGEST_AXIS, whole=True),
        ),
    ] = None
    mean: Annotated[
        list[str] | None,
        option(
            "The mean that is subtracted, of values in 0 to 1: one number, or one for each channel.",
            validator=numbers(0, 1, advice=", because pictures are scaled to 0..1 first; divide by 255"),
        ),
    ] = None
    std: Annotated[
        list[str] | None,
        option(
            "The standard deviation that is divided by: one number, or one for each channel.",
            validator=numbers(0, 1, above=True, advice=", because pictures are scaled to 0..1 first; divide by 255"),
        ),
    ] = None
    class_names: Annotated[
        Path | None,
        option(
            "A file with the names of the classes, in the order of the output: a name in each line, a JSON list, or "
            'a JSON object such as {"0": "cat"}.',
            "--classes",
        ),
    ] = None


@Parameter(name="*", group=INPUT)
@dataclass(frozen=True)
class PictureOptions(InputOptions):
    """Where pictures come from besides the command line, and how they become the model's input."""

    listed: Annotated[
        Path | None,
        option(
            'A file with the paths of pictures or folders, one in each line, or with NUL between them. "-" reads the '
            "list from standard input.",
            "--from",
        ),
    ] = None


@Parameter(name="*", group=TARGET)
@dataclass(frozen=True)
class TargetOptions:
    """What is explained: classes, boxes, pixels or texts."""

    classes: Annotated[
        list[str] | None,
        option(
            "The class to explain, by name or index. Repeat it for several classes. By default, the predicted class. "
            "For a detector, its most confident box of that class; for a segmentation, the pixels of that class.",
            "--class",
        ),
    ] = None
    boxes: Annotated[
        list[int] | None,
        option(
            "Explain the detected box of this rank by score; rank 0 has the highest score. Repeat it for several "
            "boxes. With --class, the rank is among the boxes of that class. By default, rank 0 for a detector.",
            "--box",
            **whole(0, words="ranks count from 0"),
        ),
    ] = None
    pixels: Annotated[
        bool,
        option(
            "Explain the pixels of --class, or of the class that wins the most pixels. This is the default for a "
            "segmentation."
        ),
    ] = False
    texts: Annotated[
        list[str] | None,
        option(
            "Explain the similarity of the picture and this text, for CLIP or SigLIP. Repeat it for several texts.",
            "--text",
        ),
    ] = None
    score: Annotated[
        Literal["logit", "probability", "log-odds", "sigmoid-probability", "sigmoid-log-odds"],
        option(
            "What is explained of a class: its logit; its probability or log-odds under a softmax over all classes; or "
            "under a sigmoid of its own logit, for multi-label classifiers and those with one logit."
        ),
    ] = "logit"
    part: Annotated[
        str | None,
        option(
            "The tensor to read of a model that returns several: its path, such as logits, 0 or 1.scores. The error "
            "lists the paths where more than one tensor could be meant."
        ),
    ] = None


@Parameter(name="*", group=METHOD)
@dataclass(frozen=True)
class MethodOptions:
    """Which methods, with which options, at which layer."""

    methods: Annotated[
        list[MethodName],
        choice(
            'A method; "torchpeek methods" lists them. Repeat it for several methods, which share one forward pass. '
            '"all" selects each method that needs only that pass and its gradients, and that the model and the layer '
            "allow. Methods that read attention need a transformer in which all tokens attend to each other.",
            "--method",
        ),
    ] = field(default_factory=lambda: ["gradcam"])
    method_options: Annotated[
        list[str] | None,
        option(
            'An option of a method, as NAME=VALUE; "torchpeek methods --json" lists them. Examples: --option '
            "precision=bfloat16, --option samples=8. It applies to each selected method that has it.",
            "--option",
        ),
    ] = None
    layers: Annotated[
        list[str] | None,
        option(
            'The target layer; "torchpeek layers" lists the layers. "act[1]" is the second call of a layer that is '
            "called several times. Repeat it for one heatmap from several layers. By default, the last layer with a "
            "grid; for polycam and refinecam, the last layers of the coarsest grids. Methods that use every layer "
            "(fullgrad, and those that read attention) ignore it.",
            "--layer",
            validator=not_empty,
        ),
    ] = None
    layout: Annotated[
        str | None,
        option(
            "How to read the output of --layer where its shape is ambiguous: channels-first, channels-last, tokens, "
            'channel-tokens or sequence-first, alone or with the grid, such as "tokens 1+14x14"; or the axes one by '
            'one, such as "N C H W", or "(N 4) C H W" for 4 views of each sample in the batch axis.'
        ),
    ] = None


@Parameter(name="*", group=METRIC)
@dataclass(frozen=True)
class MetricOptions:
    """Which metrics, with which options, and where the object is for those that need it."""

    metrics: Annotated[
        list[MetricName] | None,
        choice(
            'A metric; "torchpeek metrics" lists them, and docs/metrics.md describes them. Repeat it for several '
            'metrics. "all" selects each metric that needs neither the region of the object nor further heatmaps. By '
            "default, deletion, insertion, average-drop and average-gain. Where the score is no probability, all and "
            "the default leave out the metrics of a probability.",
            "--metric",
        ),
    ] = None
    metric_options: Annotated[
        list[str] | None,
        option(
            'An option of a metric, as METRIC.NAME=VALUE; "torchpeek metrics --json" lists them. Example: '
            "--metric-option deletion.steps=20.",
            "--metric-option",
        ),
    ] = None
    boxes: Annotated[
        Path | None,
        option(
            'Where the object is, for metrics that need it: a JSON file {"cat.jpg": [[left, top, right, bottom], ...], '
            "...}. The keys are file names or paths. The boxes are in pixels of the original, upright picture.",
        ),
    ] = None
    masks: Annotated[
        Path | None,
        option(
            "Where the object is: a folder with a mask for each picture, of the same size and the same name without "
            "its suffix. The object is where the mask is not black.",
        ),
    ] = None


@Parameter(name="*", group=DRAWING)
@dataclass(frozen=True)
class OverlayOptions:
    """How overlays are drawn."""

    colormap: Annotated[
        Colormap,
        choice("viridis, inferno, turbo, jet or diverging. diverging also shows what is evidence against the class."),
    ] = "viridis"
    alpha: Annotated[
        float, option("How much of the heatmap is mixed into the picture, 0 to 1.", validator=number(0, 1))
    ] = 0.6
    fade: Annotated[bool, option("Mix in less of the heatmap where its value is low. This is the default.")] = False
    even: Annotated[bool, option("Mix in as much of the heatmap everywhere, whatever its value.")] = False
    signed: Annotated[bool, option("The same as --colormap diverging.")] = False
    colorbar: Annotated[bool, option("Draw a colour bar with the map's values below each overlay.")] = False
    extract: Annotated[
        bool, option("Also write the picture multiplied by the heatmap, which keeps only what mattered.")
    ] = False

    @property
    def drawn_colormap(self) -> str:
        """The colormap that is drawn."""
        return "diverging" if self.signed else self.colormap

    def __str__(self) -> str:
        """The line in a report."""
        return f"{self.drawn_colormap}, alpha {self.alpha:g}, {'an even mix' if self.even else 'fading with the value'}"


@Parameter(name="*", group=DRAWING)
@dataclass(frozen=True)
class FeatureMapOptions:
    """Which feature maps of a layer are drawn, and on which scale."""

    channels: Annotated[
        list[str] | None,
        option(
            "Draw these channels, by their indices from 0, such as --channels 3,17,250. By default, the first ones, or "
            "those that --sort puts first.",
            validator=not_empty,
        ),
    ] = None
    sort: Annotated[
        Literal["index", "contribution"],
        choice(
            "index, or contribution: what contributes most to the score comes first. The contribution of a channel is "
            "its activation times the gradient of the score, summed over the grid. The score is that of --class, or of "
            "the predicted class."
        ),
    ] = "index"
    most: Annotated[
        int, option("Draw at most this many feature maps of a layer. The picture says how many.", **whole(1))
    ] = 64
    scale: Annotated[
        Scale,
        choice(
            "each: every map from its own lowest to its own highest value; shared: one scale for all maps of a layer. "
            "The picture says which, in numbers."
        ),
    ] = "each"
    clip: Annotated[
        tuple[float, float] | None,
        option(
            "Two percentiles that take the place of the lowest and the highest value in --scale, such as --clip 1 99, "
            "so that padding or a few large values do not flatten the rest.",
            validator=number(0, 100, words="two percentiles from 0 to 100, the lower one first: --clip 1 99"),
        ),
    ] = None
    colormap: Annotated[
        Colormap | None,
        choice(
            "viridis, inferno, turbo, jet or diverging. diverging has zero in the middle. By default, diverging where "
            "maps have values below zero, else viridis."
        ),
    ] = None


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True)
class OutputOptions:
    """Where results are written. Nothing is written without --out."""

    out: Annotated[Path | None, option("The folder to write to. By default, no file is written.", "--out", "-o")] = None
    overwrite: Annotated[
        bool, option("Write into a folder that already has files, and replace files of the same name.")
    ] = False


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True)
class FolderOptions(OutputOptions):
    """Where results are written, for a command that always writes."""

    out: Annotated[Path, option("The folder to write to.", "--out", "-o")] = Path("peek")


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True)
class ConsoleOptions:
    """What is printed."""

    json: Annotated[bool, option("Print JSON, for scripts.")] = False
    debug: Annotated[bool, option("Show the traceback of an error.")] = False
