"""The options of the commands for data-set runs. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from cyclopts import Group, Parameter

from torchpeek.cli.option_values import Fusion, MethodName, MetricName, not_empty, whole
from torchpeek.cli.options import METHOD, METRIC, MODEL, OUTPUT, choice, option

SAMPLES = Group.create_ordered("Samples")
EXECUTION = Group.create_ordered("Execution")

RunPlace: TypeAlias = Annotated[str, option("The folder or URL of the run.")]


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True)
class RunModelOptions:
    """Which model. A run that is continued knows it."""

    model: Annotated[
        str | None,
        option(
            "torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER (transformers), or package.module:callable, which may be "
            "in the working directory. A run that is continued has its own; a package.module:callable has to be named "
            "again."
        ),
    ] = None
    weights: Annotated[
        Path | None,
        option(
            '"random", a file (.safetensors, or a state_dict written by torch.save), or the name of torchvision '
            "weights. By default, the pretrained weights, or those of the run that is continued."
        ),
    ] = None
    seed: Annotated[
        int | None,
        option(
            "The seed of everything that is drawn at random: random weights, and what methods and metrics draw. By "
            "default, 0, or that of the run that is continued.",
            **whole(0, 2**63 - 1),
        ),
    ] = None
    trust_pickle: Annotated[bool, option("Load a weights file that can run code.")] = False
    trust_remote_code: Annotated[bool, option("Run the code that a transformers checkpoint contains.")] = False


@Parameter(name="*", group=METHOD)
@dataclass(frozen=True)
class RunMethodOptions:
    """What is computed of each picture."""

    methods: Annotated[
        list[MethodName] | None,
        choice(
            'A method; "torchpeek methods" lists them. Repeat it for several methods, which share one forward pass. '
            'As in "torchpeek cam", "all" selects several. Without any, pictures are only classified.',
            "--method",
        ),
    ] = None
    method_options: Annotated[
        list[str] | None,
        option("An option of a method, as NAME=VALUE. It applies to each selected method that has it.", "--option"),
    ] = None
    layers: Annotated[
        list[str] | None,
        option(
            "The target layer, by name or pattern. Repeat it for several. By default, the last layer with a grid.",
            "--layer",
            validator=not_empty,
        ),
    ] = None
    fuse: Annotated[Fusion | None, choice("Combine the heatmaps of several layers by max, mean or product.")] = None
    smooth: Annotated[
        bool, option("Average over the picture and its mirror image, each multiplied by 0.9, 1 and 1.1.")
    ] = False
    keep: Annotated[
        list[str] | None,
        option(
            "Keep the activations of a layer, as LAYER, LAYER=pooled (the mean over all positions, and the default), "
            "LAYER=whole, or 'LAYER=token 0'. Repeat it for several.",
            validator=not_empty,
        ),
    ] = None
    dtype: Annotated[
        Literal["float16", "float32"], option("The dtype in which heatmaps and activations are stored.")
    ] = "float16"


@Parameter(name="*", group=METRIC)
@dataclass(frozen=True)
class RunMetricOptions:
    """Which metrics each heatmap is scored with."""

    metrics: Annotated[
        list[MetricName] | None,
        choice('A metric; "torchpeek metrics" lists them. Repeat it for several. By default, none.', "--metric"),
    ] = None
    metric_options: Annotated[
        list[str] | None,
        option("An option of a metric, as METRIC.NAME=VALUE.", "--metric-option"),
    ] = None


@Parameter(name="*", group=SAMPLES)
@dataclass(frozen=True)
class SampleOptions:
    """Which samples, and what else is known of them."""

    data: Annotated[
        str | None, option("The data, where the argument is a job file. Elsewhere, it is the argument itself.")
    ] = None
    labels: Annotated[
        str | None,
        option("A table with the columns path and label, where the data itself does not say the class of a picture."),
    ] = None
    boxes: Annotated[
        Path | None,
        option(
            'Where the object is: a JSON file {"cat.jpg": [[left, top, right, bottom], ...], ...}, in pixels of the '
            "original, upright picture. The keys are those of the samples."
        ),
    ] = None
    masks: Annotated[
        Path | None,
        option("Where the object is: a folder with a mask for each picture, of the same path without its suffix."),
    ] = None
    limit: Annotated[
        int | None, option("Compute only the first samples. Another call goes on with the rest.", **whole(1))
    ] = None
    sample: Annotated[
        int | None,
        option("Compute only a random sample of this size. Another call goes on with the rest.", **whole(1)),
    ] = None
    sample_seed: Annotated[int, option("The seed of the random sample.", **whole(0, 2**63 - 1))] = 0
    retry_failed: Annotated[bool, option("Try samples again that failed before.")] = False
    max_errors: Annotated[int | None, option("Stop when more samples have failed.", **whole(0))] = None


@Parameter(name="*", group=EXECUTION)
@dataclass(frozen=True)
class ExecutionOptions:
    """Where and how the run is computed. The numbers do not depend on it."""

    executor: Annotated[Literal["local", "ray"], option("local: this process. ray: the machines of a Ray cluster.")] = (
        "local"
    )
    address: Annotated[
        str | None,
        option('The address of the Ray cluster, or "auto". By default, Ray is started on this machine.'),
    ] = None
    workers: Annotated[
        int | None,
        option(
            "The number of processes that read and decode pictures; with Ray, the number of actors. By default, the "
            "spare cores.",
            **whole(0),
        ),
    ] = None
    batch: Annotated[
        int | None,
        option(
            "The number of pictures in one batch of a new run. By default, 16 on the CPU and 64 on other devices, or "
            "fewer where these do not fit into memory.",
            **whole(1),
        ),
    ] = None
    shard: Annotated[
        str | None,
        option(
            "Compute a part of the run, as I/N: 0/4 to 3/4 are four parts. By default, what a Kubernetes indexed job, "
            "a SLURM array or torchrun says in its variables."
        ),
    ] = None
    estimate: Annotated[
        bool, option("Only measure a few samples, and print how long the run takes and how much it stores.")
    ] = False


@Parameter(name="*", group=OUTPUT)
@dataclass(frozen=True)
class RunOutputOptions:
    """Where the run is written."""

    out: Annotated[
        str | None,
        option("The folder or URL of the run. If a run is there, it goes on.", "--out", "-o"),
    ] = None
    prometheus: Annotated[
        Path | None, option("Also write the progress to this file, in the text format of Prometheus.")
    ] = None
