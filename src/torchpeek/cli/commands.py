"""Every command with its options and its help. Nothing here imports torch; the file of a command does its work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from torchpeek.cli.option_values import Fusion, Scale, not_empty, whole
from torchpeek.cli.options import (
    DRAWING,
    INPUT,
    LAYERS,
    METHOD,
    MODEL,
    OUTPUT,
    TARGET,
    ConsoleOptions,
    Device,
    FeatureMapOptions,
    FolderOptions,
    InputOptions,
    MethodOptions,
    MetricOptions,
    ModelOptions,
    OutputOptions,
    OverlayOptions,
    PictureOptions,
    Pictures,
    TargetOptions,
    TensorBoardFolder,
    choice,
    option,
)
from torchpeek.cli.run_options import (
    ExecutionOptions,
    RunMethodOptions,
    RunMetricOptions,
    RunModelOptions,
    RunOutputOptions,
    RunPlace,
    SampleOptions,
)


def cam(
    *pictures: Pictures,
    model: ModelOptions,
    device: Device = "cpu",
    inputs: PictureOptions = PictureOptions(),
    batch_size: Annotated[
        int, option("The number of pictures in one batch.", group=MODEL, **whole(1, words="at least 1"))
    ] = 8,
    target: TargetOptions = TargetOptions(),
    top: Annotated[
        int | None,
        option("Explain the TOP most probable classes of each picture, side by side.", group=TARGET, **whole(1)),
    ] = None,
    contrast: Annotated[
        int | None,
        option(
            "Explain what sets each class apart from the CONTRAST most similar classes (Finer-CAM).",
            group=TARGET,
            **whole(1),
        ),
    ] = None,
    method: MethodOptions = MethodOptions(),
    fuse: Annotated[
        Fusion | None,
        choice(
            "Combine the heatmaps of several layers by max, mean or product. --layer may then be a pattern.",
            group=METHOD,
        ),
    ] = None,
    smooth: Annotated[
        bool,
        option("Average over the picture and its mirror image, each multiplied by 0.9, 1 and 1.1.", group=METHOD),
    ] = False,
    overlay: OverlayOptions = OverlayOptions(),
    output: FolderOptions = FolderOptions(),
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """Show which part of each picture decided, with one method or several.

    For each picture it writes an overlay for every method and class, one sheet with all of them, and the raw heatmaps
    (safetensors, with everything they depend on). For all pictures together it writes report.html, which needs no other
    file, and results.json. It prints a table of what it wrote.

    Example: torchpeek cam cat.jpg holiday/ --model torchvision:resnet50 --method gradcam --method layercam --class
    "tiger cat"
    """
    from torchpeek.cli.cam import run

    return run(
        pictures,
        model,
        device,
        batch_size,
        target,
        method,
        overlay,
        output,
        top=top,
        contrast=contrast,
        fuse=fuse,
        smooth=smooth,
        inputs=inputs,
        json=console.json,
    )


def evaluate(
    *pictures: Pictures,
    model: ModelOptions,
    device: Device = "cpu",
    inputs: PictureOptions = PictureOptions(),
    target: TargetOptions = TargetOptions(),
    method: MethodOptions = MethodOptions(),
    metric: MetricOptions = MetricOptions(),
    output: OutputOptions = OutputOptions(),
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """Measure how far heatmaps can be trusted, beside a random heatmap and a centred Gaussian as baselines.

    It prints a table, the best method first for each metric, and says which methods are not significantly better than
    the two baselines. A few pictures are too few to tell. If there are several classes, boxes or texts, the mean over
    them counts.

    With --out it writes report.html, which shows each picture with its overlays, curves and numbers, and needs no other
    file; results.json, with everything; results.parquet, with a row for each picture, metric and method (needs pyarrow,
    the extra "data"); and curves.png, with the mean curves of deletion and insertion (needs matplotlib, the extra
    "plot"). It says which of these it leaves out because a package is not installed. With --overwrite it replaces or
    deletes the files of an earlier run.

    Example: torchpeek evaluate holiday/ --model torchvision:resnet50 --method gradcam --method layercam -o trust/
    """
    from torchpeek.cli.evaluate import run

    return run(pictures, model, device, target, method, metric, output, inputs=inputs, json=console.json)


def layers(
    *,
    model: ModelOptions,
    picture: Annotated[
        Path | None,
        option(
            "Show the shapes for this picture. By default, for a blank input of the model's own size, or of "
            "--input-size, which may then be any shape without the batch axis.",
            group=INPUT,
        ),
    ] = None,
    inputs: InputOptions = InputOptions(),
    output: OutputOptions = OutputOptions(),
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """List a network's layers: name, type, output shape and parameters, and the layer that "cam" uses by default.

    The layers do not depend on the weights, so --weights random saves a download. With --out it writes layers.json, and
    layers.txt with the table.

    Example: torchpeek layers --model torchvision:resnet50 --weights random
    """
    from torchpeek.cli.layers import run

    return run(model, output, picture=picture, inputs=inputs, json=console.json)


def kernels(
    *,
    model: ModelOptions,
    layers: Annotated[
        list[str] | None,
        option(
            "A layer name or a glob. Repeat it for several. By default, every convolution.",
            "--layer",
            group=LAYERS,
            validator=not_empty,
        ),
    ] = None,
    most: Annotated[
        int | None,
        option(
            "Draw at most this many kernels of a layer, and this many input channels of a kernel: those with the "
            "largest norm. The picture says how many. By default, 64 and 12; or 960 and 960 where the kernels have the "
            "size 1 x 1 and are drawn as one matrix.",
            group=DRAWING,
            **whole(1),
        ),
    ] = None,
    scale: Annotated[
        Scale,
        choice(
            "shared: one scale for all kernels of a layer; each: a scale for each tile. The picture says which, in "
            "numbers.",
            group=DRAWING,
        ),
    ] = "shared",
    output: OutputOptions = OutputOptions(),
    tensorboard: TensorBoardFolder = None,
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """List the convolutions of a network with the shape and the statistics of their kernels, and draw the kernels.

    With --out it writes a picture for each layer; kernels.safetensors, with all the weights; kernels.json, with the
    table; first-kernels.png, with the first kernel of each layer, or of those with kernels larger than 1 x 1, if there
    are any; and report.html, which shows all of it and needs no other file.

    Example: torchpeek kernels --model torchvision:mobilenet_v2 --layer "features.0*" -o kernels/
    """
    from torchpeek.cli.kernels import run

    return run(model, output, layers=layers, most=most, scale=scale, tensorboard=tensorboard, json=console.json)


def features(
    *pictures: Pictures,
    model: ModelOptions,
    device: Device = "cpu",
    inputs: PictureOptions = PictureOptions(),
    layers: Annotated[
        list[str] | None,
        option(
            'A layer name or a glob; "act[1]" is the second call of a layer that is called several times. Repeat it '
            'for several. By default, the layer that "cam" uses.',
            "--layer",
            group=LAYERS,
            validator=not_empty,
        ),
    ] = None,
    target: TargetOptions = TargetOptions(),
    drawing: FeatureMapOptions = FeatureMapOptions(),
    output: OutputOptions = OutputOptions(),
    tensorboard: TensorBoardFolder = None,
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """Show what layers return for each picture: shape, statistics, share of zeros, dead channels, and feature maps.

    With --out it writes, for each picture, a grid of feature maps for every layer and features.safetensors, with all
    the values. For all pictures together it writes features.json, with the table, and report.html, which shows each
    picture beside its feature maps and needs no other file. The tokens of a transformer are drawn as the grid that they
    are of, without the class token. A layer that is called several times has a row and a grid for each call, such as
    `relu[1]` for the second. A layer that returns several tensors has a row for each of them, such as `lstm:1.0`, and
    no grid.

    Example: torchpeek features cat.jpg --model torchvision:alexnet --layer "features.*" -o features/

    Example: torchpeek features cat.jpg --model torchvision:vit_b_16 --layer "encoder.layers.*_10" --clip 1 99 --sort
    contribution --class "tiger cat" -o features/
    """
    from torchpeek.cli.features import run

    return run(
        pictures,
        model,
        device,
        output,
        target,
        drawing,
        layers=layers,
        inputs=inputs,
        tensorboard=tensorboard,
        json=console.json,
    )


def gradients(
    *pictures: Pictures,
    model: ModelOptions,
    device: Device = "cpu",
    inputs: PictureOptions = PictureOptions(),
    train: Annotated[
        bool,
        option(
            "Use train mode: BatchNorm normalises with the statistics of the batch, and Dropout drops.", group=MODEL
        ),
    ] = False,
    layers: Annotated[
        list[str] | None,
        option(
            "A layer name or a glob. Repeat it for several. By default, every layer with parameters.",
            "--layer",
            group=LAYERS,
            validator=not_empty,
        ),
    ] = None,
    target: Annotated[
        str | None,
        option(
            "The class of the pictures, by name or index. By default, the class predicted for each picture.",
            "--class",
            group=TARGET,
        ),
    ] = None,
    output: OutputOptions = OutputOptions(),
    tensorboard: TensorBoardFolder = None,
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """Show how large each layer's gradients are in one training step on these pictures, taken as one batch.

    The loss is the cross entropy of --class, or of the class that is predicted for each picture. The weights are not
    updated. With --out it writes gradient-flow.png, gradients.json, and report.html, which shows both and needs no
    other file.

    Example: torchpeek gradients cat.jpg --model torchvision:mobilenet_v2 --class "tiger cat" -o gradients/
    """
    from torchpeek.cli.gradients import run

    return run(
        pictures,
        model,
        device,
        output,
        target=target,
        layers=layers,
        train=train,
        inputs=inputs,
        tensorboard=tensorboard,
        json=console.json,
    )


def run(
    place: Annotated[
        str | None,
        option(
            "A folder of pictures, whose sub-folders may be classes; a table (CSV, JSON lines, parquet); tar shards; a "
            "data set of Hugging Face; package.module:callable for a torch Dataset; a URL of these; a run; "
            "or a job file, which ends in .toml.",
            name="DATA",
            group=INPUT,
        ),
    ] = None,
    /,
    *,
    model: RunModelOptions = RunModelOptions(),
    device: Device = "cpu",
    inputs: InputOptions = InputOptions(),
    target: Annotated[
        list[str] | None,
        option(
            'The class to explain, by name or index; "label" for the label of each picture. Repeat it for several '
            "classes. By default, the predicted class.",
            "--class",
            group=TARGET,
        ),
    ] = None,
    method: RunMethodOptions = RunMethodOptions(),
    metric: RunMetricOptions = RunMetricOptions(),
    samples: SampleOptions = SampleOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
    output: RunOutputOptions = RunOutputOptions(),
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """Explain every picture of a data set, into a folder that goes on where it stopped.

    The same command again computes what is missing. Another method, layer or metric is added to the samples of the run.
    A picture that cannot be used is a row of the table errors, and stops nothing. docs/runs.md describes the files, and
    "torchpeek query" reads them.

    A job file is TOML. Its keys are the options without their dashes, and "data". Options win over the file.

    Exit status: 0 done; 1 some samples have failed; 2 the request is wrong, or the run was made with something else;
    130 interrupted by Ctrl-C: the same command goes on.

    Example: torchpeek run val/ --model torchvision:mobilenet_v2 --method gradcam --method layercam --out runs/v2

    Example: torchpeek run runs/v2 --method scorecam
    """
    from torchpeek.cli.run import run

    return run(place, model, device, inputs, target, method, metric, samples, execution, output, json=console.json)


def query(
    place: RunPlace,
    sql: Annotated[str | None, option("A query in DuckDB's SQL. By default, the columns of the tables.")] = None,
    /,
    *,
    csv: Annotated[bool, option("Print CSV.", group=OUTPUT)] = False,
    parquet: Annotated[Path | None, option("Write the result to this parquet file.", group=OUTPUT)] = None,
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """Query the tables of a run: samples, heatmaps and errors, which share the column key.

    Example: torchpeek query runs/v2 "select class, avg(inside_mask) from heatmaps group by class order by 2 limit 10"
    """
    from torchpeek.cli.query import run

    return run(place, sql, csv=csv, parquet=parquet, json=console.json)


def verify(
    place: RunPlace,
    /,
    *,
    repair: Annotated[bool, option("Compute damaged parts again.", group=OUTPUT)] = False,
    model: RunModelOptions = RunModelOptions(),
    device: Device = "cpu",
    inputs: InputOptions = InputOptions(),
    workers: Annotated[
        int | None, option("The number of processes that read and decode pictures.", group=MODEL, **whole(0))
    ] = None,
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """Compare every file of a run with the SHA-256 that it was written with.

    Exit status: 0 nothing is damaged, or all of it was repaired; 1 something is damaged, and is named.

    Example: torchpeek verify runs/v2
    """
    from torchpeek.cli.verify import run

    return run(place, model, device, inputs, repair=repair, workers=workers, json=console.json)


def export(
    place: RunPlace,
    /,
    *,
    to: Annotated[
        Literal["png", "zarr", "fiftyone", "parquet"],
        option(
            "png: overlays; zarr: the heatmaps; fiftyone: a data set for FiftyOne; parquet: the tables.", group=OUTPUT
        ),
    ],
    out: Annotated[Path, option("The folder to write to. It must not have files.", "--out", "-o", group=OUTPUT)],
    limit: Annotated[int | None, option("Export only the first samples.", group=OUTPUT, **whole(1))] = None,
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """Write a run in the format of another program.

    Example: torchpeek export runs/v2 --to png --out overlays/ --limit 100
    """
    from torchpeek.cli.export import run

    return run(place, to, out, limit=limit, json=console.json)


def methods(
    *,
    markdown: Annotated[bool, option("Print a Markdown table, as in the README.", group=OUTPUT)] = False,
    console: ConsoleOptions = ConsoleOptions(),
) -> int:
    """List the methods: what each computes, what it needs, and what it costs."""
    from torchpeek.cli.methods import run

    return run(json=console.json, markdown=markdown)


def metrics(*, console: ConsoleOptions = ConsoleOptions()) -> int:
    """List the metrics: what each says of a heatmap, what it needs, and what it costs.

    A metric needs, besides the picture: "heatmap", nothing more; "region", where the object is; "passes", the model;
    "explanations", heatmaps of other inputs by the same method. --json also lists the options of each metric.
    """
    from torchpeek.cli.metrics import run

    return run(json=console.json)


COMMANDS = (cam, evaluate, layers, kernels, features, gradients, run, query, verify, export, methods, metrics)
"""In the order of the help page."""
