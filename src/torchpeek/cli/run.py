"""torchpeek run: a whole data set, into a folder that goes on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from torchpeek.cli.cluster_shard import ClusterShard, cluster_shard
from torchpeek.cli.console import print_json
from torchpeek.cli.method_selection import check_methods, method_names, method_options, metric_options
from torchpeek.cli.option_values import layer_names
from torchpeek.cli.options import STDIN, InputOptions, MethodOptions
from torchpeek.cli.run_model import run_model
from torchpeek.cli.run_options import (
    ExecutionOptions,
    RunMethodOptions,
    RunMetricOptions,
    RunModelOptions,
    RunOutputOptions,
    SampleOptions,
)
from torchpeek.cli.run_progress import RunProgressView
from torchpeek.cli.signals import set_consequence
from torchpeek.cli.terminal import print_progress, print_text
from torchpeek.errors import OptionError, RunError
from torchpeek.models import LoadedModel
from torchpeek.runs.api import run as compute
from torchpeek.runs.estimate import estimate
from torchpeek.runs.progress import duration
from torchpeek.runs.run import Run
from torchpeek.runs.run_folder import RunFolder, is_run, opened, storage_of


def run(
    place: str | None,
    model: RunModelOptions,
    device: str,
    inputs: InputOptions,
    target: Sequence[str] | None,
    method: RunMethodOptions,
    metric: RunMetricOptions,
    samples: SampleOptions,
    execution: ExecutionOptions,
    output: RunOutputOptions,
    *,
    json: bool,
) -> int:
    """Compute a run or a part of it, and print what was done. Returns the exit status."""
    data, out = _places(place, samples, output, execution)
    asked = _computed(method, metric, target)
    own = cluster_shard(execution.shard, os.environ if execution.executor == "local" else {})
    if samples.sample is not None and samples.limit is not None:
        raise OptionError("--sample and --limit both say which samples come first; allowed: one of them")
    stored = opened(storage_of(out)) if out is not None and is_run(storage_of(out)) else None
    if stored is None and data is None:
        raise OptionError(f"{out}: no run, and no data to make one of. Next: torchpeek run DATA --out {out}")
    loaded, inputs, seed = run_model(model, device, inputs, None if stored is None else stored.spec)
    known = {
        **asked,
        "labels": samples.labels,
        "boxes": samples.boxes,
        "masks": samples.masks,
        "workers": execution.workers,
        "batch": execution.batch,
        "dtype": method.dtype,
        "max_size": inputs.max_size,
        "seed": seed,
    }
    if execution.estimate:
        return _estimated(loaded, data, stored, known, json)
    assert out is not None
    if own is not None and own.count > 1:
        print_progress(f"part {own.index} of {own.count}, as {own.said_by} says")
    set_consequence("the same command goes on where it stopped")
    if stored is None:
        print_progress("a new run: the samples are listed, and a few batches are measured")
    with RunProgressView(output.prometheus) as view:
        finished = compute(
            loaded,
            data,
            out,
            **known,
            executor=execution.executor,
            address=execution.address,
            shard=None if own is None else (own.index, own.count),
            limit=samples.limit,
            sample=samples.sample,
            sample_seed=samples.sample_seed,
            retry_failed=samples.retry_failed,
            max_errors=samples.max_errors,
            report=view,
        )
    return _closing(finished, out, view, own, json)


def _places(
    place: str | None, samples: SampleOptions, output: RunOutputOptions, execution: ExecutionOptions
) -> tuple[str | None, str | None]:
    """The data and the run. Without --out, the argument is a run, which goes on."""
    if place is not None and samples.data is not None:
        raise OptionError(f"the data is {place}, and --data {samples.data}; allowed: one of them")
    data = place if place is not None else samples.data
    data = "-" if data == STDIN else data
    if output.out is not None:
        return data, output.out
    if data is None:
        raise OptionError(
            "no data; allowed: DATA or --data. Example: torchpeek run val/ --model torchvision:resnet50 "
            "--method gradcam --out runs/first"
        )
    if data != "-" and is_run(storage_of(data)):
        return None, data
    if execution.estimate:
        return data, None
    raise OptionError(f"--out is required: the folder of the run. {data} is no run that could go on")


def _computed(method: RunMethodOptions, metric: RunMetricOptions, target: Sequence[str] | None) -> dict[str, Any]:
    """What is computed of each picture, as `run` takes it."""
    methods: dict[str, dict[str, Any]] = {}
    layers = layer_names(method.layers)
    if method.methods:
        options = MethodOptions(list(method.methods), method.method_options, layers)
        check_methods(options)
        methods = method_options(method_names(options), method.method_options or ())
    elif method.method_options:
        raise OptionError("--option is for methods, and there is no --method")
    metrics = metric_options(metric.metrics or (), metric.metric_options or ())
    classes = [int(each) if each.isdecimal() else each for each in target or ()]
    return {
        "methods": methods,
        "layer": layers,
        "target": None if not classes else classes[0] if len(classes) == 1 else classes,
        "fuse": method.fuse,
        "smooth": method.smooth,
        "metrics": metrics,
        "keep": dict(map(_kept, method.keep or ())),
    }


def _kept(text: str) -> tuple[str, str]:
    """LAYER, or LAYER=WHAT, as a layer and what is kept of it."""
    layer, equals, what = text.rpartition("=")
    return (layer, what.strip()) if equals else (text, "pooled")


def _estimated(
    loaded: LoadedModel, data: str | None, stored: RunFolder | None, known: dict[str, Any], json: bool
) -> int:
    if data is None and stored is not None:
        data = stored.source.get("path")
    if data is None:
        raise OptionError("--estimate needs the data. Next: name it, as for a new run")
    found = estimate(loaded, data, **known)
    if json:
        print_json({**asdict(found), "seconds": found.seconds, "bytes": found.bytes})
    else:
        print_text(*found.lines())
    return 0


def _closing(finished: Run, out: str, view: RunProgressView, own: ClusterShard | None, json: bool) -> int:
    """Print what was done. Returns the exit status: 1 where samples of the run have failed."""
    progress, folder = view.progress, opened(storage_of(out))
    done = 0 if progress is None else progress.done
    # The parts of other processes are their own business.
    failed = (0 if progress is None else progress.failed) if own is not None and own.count > 1 else _errors(finished)
    if json:
        seconds = 0.0 if progress is None else progress.seconds
        print_json(
            {
                "run": out,
                "samples": folder.cut.samples,
                "computed": done,
                "failed": failed,
                "seconds": seconds,
                "samples_per_second": 0.0 if progress is None else progress.rate,
                "waiting_share": 0.0 if progress is None else progress.waiting_share,
                "memory_bytes": 0 if progress is None else progress.memory,
                "labels_from": folder.labels_from,
                "shard": None if own is None else [own.index, own.count],
            }
        )
        return 1 if failed else 0
    if progress is None or not done:
        print_text("nothing to compute: all of it was done before")
    else:
        print_text(
            f"{done:,} samples computed in {duration(progress.seconds)}: {progress.rate:.1f} a second, device waited "
            f"{progress.waiting_share:.0%}, {progress.memory / 2**30:.1f} GiB"
        )
    if folder.labels_from:
        print_text(f"labels: {folder.labels_from}")
    if failed:
        print_text(f'failed: {failed:,}; torchpeek query {out} "select * from errors" names them')
    print_text(f"run: {out}")
    return 1 if failed else 0


def _errors(finished: Run) -> int:
    try:
        return int(finished.sql("select count(distinct key) from errors").fetchall()[0][0])
    except RunError as error:  # such as a part that somebody has damaged
        raise RunError(f"{error}. Next: torchpeek verify names what is damaged") from error
