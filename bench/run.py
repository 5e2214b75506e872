"""make bench: the cost of torchpeek, and of other tools in the same run.

Prints the tables and writes them to bench/results.md and bench/results.json. Speed is reported, never asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet50

import hooks
import methods
import metrics
import runs
import torchpeek as tp
import watch
from timing import interleaved, ratios

HERE = Path(__file__).parent
FORWARD = "forward pass (inference mode)"
ALL = "torchpeek compare, all of one forward and one backward pass"
TARGETS = {"torchpeek gradcam": 1.10, ALL: 1.20}
PARTS = ("heatmaps", "methods", "metrics", "recording", "watch", "runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--only",
        type=part_names,
        default=PARTS,
        metavar="PART,PART",
        help=f"measure these parts ({', '.join(PARTS)}), and take the others from results.json",
    )
    arguments = parser.parse_args()
    file = HERE / "results.json"
    results: dict[str, Any] = json.loads(file.read_text()) if set(arguments.only) != set(PARTS) else {}
    results |= {"machine": machine()}
    if "import" not in results:
        results["import"] = import_time()
    if "heatmaps" in arguments.only:
        results["resnet50"] = measure_heatmaps(arguments.rounds)
    if "methods" in arguments.only:
        results["methods"] = methods.measure_all(arguments.rounds)
    if "metrics" in arguments.only:
        results["metrics"] = metrics.measure_all(arguments.rounds)
    if "recording" in arguments.only:
        results |= hooks.measure_all(arguments.rounds)
    if "watch" in arguments.only:
        results["watch"] = watch.measure_all(arguments.rounds)
    if "runs" in arguments.only:
        results["runs"] = runs.measure_all(arguments.rounds)
    file.write_text(json.dumps(results, indent=2) + "\n")
    pages = [markdown(results, results["resnet50"]), methods.markdown(results["methods"])]
    pages += [metrics.markdown(results["metrics"])] if "metrics" in results else []
    pages += [hooks.markdown(results)]
    pages += [watch.markdown(results["watch"])] if "watch" in results else []
    pages += [runs.markdown(results["runs"])] if "runs" in results else []
    page = "\n".join(pages)
    (HERE / "results.md").write_text(page)
    print(page)


def part_names(text: str) -> tuple[str, ...]:
    """`heatmaps,recording` -> the names of these parts."""
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"no part {', '.join(map(repr, unknown))}; allowed: {', '.join(PARTS)}")
    return names


def measure_heatmaps(rounds: int) -> dict[str, dict[str, object]]:
    """ResNet-50 with one and two threads, one picture and eight."""
    table: dict[str, dict[str, object]] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch in (1, 8):
            column = f"{threads} thread{'s' if threads > 1 else ''}, batch {batch}"
            print(f"measuring: heatmaps, {column}", file=sys.stderr)
            table[column] = measure(batch, rounds if batch == 1 else max(3, rounds // 3))
    return table


def measure(batch: int, rounds: int) -> dict[str, object]:
    """ResNet-50 at `layer4`, one class for each picture: seconds, and multiples of the forward pass."""
    torch.manual_seed(0)
    model = resnet50().eval()
    x = torch.randn(batch, 3, 224, 224)
    seconds = interleaved(competitors(model, x), rounds=rounds)
    return {
        "forward_seconds": statistics.median(seconds[FORWARD]),
        "multiples": {name: round(value, 3) for name, value in ratios(seconds, FORWARD).items()},
        "rounds": rounds,
    }


def competitors(model: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from captum.attr import LayerGradCam
        from pytorch_grad_cam import GradCAM
        from torchcam.methods import GradCAM as TorchcamGradCAM

    def forward() -> None:
        with torch.inference_mode():
            model(x)

    def grad_cam() -> None:
        with GradCAM(model=model, target_layers=[model.layer4]) as extractor:
            extractor(input_tensor=x, targets=None)

    def torchcam() -> None:
        with TorchcamGradCAM(model, target_layer="layer4") as extractor:
            scores = model(x)
            extractor(scores.argmax(1).tolist(), scores)

    def captum() -> None:
        with torch.no_grad():
            predicted = model(x).argmax(1)
        LayerGradCam(model, model.layer4).attribute(x, target=predicted)

    def captum_known_class() -> None:
        LayerGradCam(model, model.layer4).attribute(x, target=0)

    return {
        FORWARD: forward,
        "torchpeek gradcam": lambda: tp.explain(model, x, method="gradcam", layer="layer4"),
        ALL: lambda: tp.compare(model, x, methods=methods.CHEAP, layer="layer4"),
        "torchpeek gradcam, 100 classes": lambda: tp.explain(
            model, x, layer="layer4", target=tp.targets.Classes(list(range(100)))
        ),
        "torchcam GradCAM": torchcam,
        "captum LayerGradCam, class known": captum_known_class,
        "captum LayerGradCam, predicted class": captum,
        "grad-cam GradCAM": grad_cam,
    }


def import_time(rounds: int = 5) -> dict[str, float]:
    """The seconds of `import torchpeek` and all its public names after `import torch`, in a new process.

    Public names are loaded on first use, so the import alone would say little. The files are compiled as pip does it.
    """
    code = (
        "import time, torch; start = time.perf_counter(); import torchpeek; "
        "[getattr(torchpeek, name) for name in torchpeek.__all__]; print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as compiled:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-c", code]
        times = [float(subprocess.check_output(command, env=environment)) for _ in range(rounds + 1)]
    return {"seconds_beyond_torch": round(min(times[1:]), 3), "target": 0.2}


def machine() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
    }


def markdown(results: dict[str, object], table: dict[str, dict[str, object]]) -> str:
    columns = list(table)
    names = list(table[columns[0]]["multiples"])  # type: ignore[call-overload]
    lines = [
        "# What it costs",
        "",
        "Written by `make bench`. ResNet-50, 224 x 224, at `layer4`. The numbers are multiples of the bare forward",
        "pass of the same batch, the median over interleaved rounds in one process.",
        "",
        "| | " + " | ".join(columns) + " | goal |",
        "|---|" + "---:|" * (len(columns) + 1),
    ]
    for name in names:
        cells = [f"{table[column]['multiples'][name]:.2f}" for column in columns]  # type: ignore[index]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {TARGETS.get(name, '')} |")
    seconds = [f"{table[column]['forward_seconds']:.3f} s" for column in columns]
    lines.append("| *the forward pass itself* | " + " | ".join(seconds) + " | |")
    imported = results["import"]
    lines += [
        "",
        f"`import torchpeek` takes {imported['seconds_beyond_torch']} s beyond `import torch` (goal: 0.2 s).",  # type: ignore[index]
        "",
        ", ".join(f"{key} {value}" for key, value in results["machine"].items()),  # type: ignore[attr-defined]
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
