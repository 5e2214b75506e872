"""The cost of every method on ResNet-18, with one picture and one thread, beside grad-cam and torchcam."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18

import torchpeek as tp
from timing import interleaved, ratios

Work = dict[str, Callable[[], object]]
FORWARD = "forward pass (inference mode)"
TARGETS = {
    "gradcam": 1.1,
    "gradcam, 100 classes": 1.5,
    "eigencam": 1.1,
    "ablationcam": 1.5,
    "recipro-cam": 1.5,
    "fullgrad": 4.0,
    "compare, all of one forward and one backward pass": 1.2,
}
CHEAP = [name for name, method in tp.METHODS.items() if method.cheap and method.layers == "one"]
HUNDRED = tp.targets.Classes(list(range(100)))


def measure_all(rounds: int) -> dict[str, Any]:
    """The table of fast methods, the slow ones, and the memory that each needs."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, x = resnet18().eval(), torch.randn(1, 3, 224, 224)
    print("measuring: short methods", file=sys.stderr)
    results: dict[str, Any] = {"short": measured(short(model, x), rounds), "peers": measured(peers(model, x), 1)}
    print("measuring: first use", file=sys.stderr)
    results["first use"] = first_use(x)
    print("measuring: scorecam (minutes)", file=sys.stderr)
    results["scorecam"] = measured(scorecam(model, x), 2, warm=False)
    print("measuring: iscam (minutes)", file=sys.stderr)
    results["iscam"] = measured(iscam(model, x), 1, warm=False)
    results["bfloat16"] = bfloat16(model, x)
    print("measuring: memory", file=sys.stderr)
    results["memory"] = memory()
    return results


def measured(work: Work, rounds: int, *, warm: bool = True) -> dict[str, Any]:
    """The seconds of the first function, and the time of the others as multiples of it."""
    base = next(iter(work))
    seconds = interleaved(work, rounds=rounds, warm=warm)
    return {
        "base": base,
        "base_seconds": statistics.median(seconds[base]),
        "multiples": {name: round(value, 3) for name, value in ratios(seconds, base).items()},
        "rounds": rounds,
    }


def forward(model: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.inference_mode():
            return model(x)

    return run


def short(model: nn.Module, x: Tensor) -> Work:
    """The methods that take no more than a few passes."""

    def explain(method: str, layer: str = "layer4", target: Any = 3) -> Callable[[], object]:
        return lambda: tp.explain(model, x, method=method, layer=layer, target=target)

    work: Work = {FORWARD: forward(model, x)}
    work |= {name: explain(name) for name in (*CHEAP, "ablationcam", "recipro-cam", "shapleycam", "fullgrad")}
    work["gradcam, 100 classes"] = explain("gradcam", target=HUNDRED)
    work["ablationcam, 100 classes"] = explain("ablationcam", target=HUNDRED)
    work["compare, all of one forward and one backward pass"] = lambda: tp.compare(
        model, x, methods=CHEAP, layer="layer4", target=3
    )
    work["gradcam, 100 classes, at layer3"] = explain("gradcam", "layer3", HUNDRED)
    work["ablationcam, at layer3 (256 channels)"] = explain("ablationcam", "layer3")
    return work


def peers(model: nn.Module, x: Tensor) -> Work:
    """The same methods of other tools. grad-cam's ablation takes over five hundred passes, so it is run once."""
    grad_cam, torchcam = _peers(model, x)
    return {
        FORWARD: forward(model, x),
        "grad-cam GradCAM": grad_cam("GradCAM"),
        "grad-cam EigenCAM": grad_cam("EigenCAM"),
        "grad-cam FullGrad": grad_cam("FullGrad"),
        "grad-cam AblationCAM": grad_cam("AblationCAM"),
        "torchcam GradCAM": torchcam("GradCAM"),
    }


def scorecam(model: nn.Module, x: Tensor) -> Work:
    """512 channels. There are as many bare passes as live channels, in batches of the same size."""
    trace = tp.trace(model, x, layer="layer4", gradients=False)
    flat = trace.activations.flatten(3)
    live = int((flat.amax(3) != flat.amin(3)).sum())
    batches = torch.randn(16, 3, 224, 224)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(math.ceil(live / 16)):
                model(batches)

    grad_cam, torchcam = _peers(model, x)
    return {
        f"{live} bare passes, 16 at a time": bare,
        "torchpeek scorecam": lambda: tp.explain(model, x, method="scorecam", layer="layer4", target=3),
        "torchpeek scorecam, 5 classes": lambda: tp.explain(
            model, x, method="scorecam", layer="layer4", target=tp.targets.Classes([1, 2, 3, 4, 5])
        ),
        "grad-cam ScoreCAM": grad_cam("ScoreCAM"),
        "torchcam ScoreCAM": torchcam("ScoreCAM"),
    }


def iscam(model: nn.Module, x: Tensor) -> Work:
    """At layer1: 64 channels, 10 steps each."""
    _, torchcam = _peers(model, x)
    return {
        "torchcam ISCAM, at layer1": torchcam("ISCAM", "layer1"),
        "torchpeek iscam, at layer1": lambda: tp.explain(model, x, method="iscam", layer="layer1", target=3),
    }


def bfloat16(model: nn.Module, x: Tensor) -> dict[str, Any] | str:
    """Score-CAM under autocast, if the processor multiplies in bfloat16; otherwise why it is not measured."""
    if not torch.cpu._is_avx512_bf16_supported():
        return "this processor does not multiply in bfloat16, where it is many times slower than float32"
    found: dict[str, Any] = {}
    for name, each, layer in (("ResNet-18", model, "layer4"), ("MobileNetV2", mobilenet_v2().eval(), "features.18")):

        def ask(precision: str | None, each: nn.Module = each, layer: str = layer) -> Tensor:
            return tp.explain(each, x, method="scorecam", layer=layer, target=3, precision=precision).values

        exact, half = ask(None), ask("bfloat16")
        work: Work = {"float32": lambda ask=ask: ask(None), "bfloat16": lambda ask=ask: ask("bfloat16")}
        if each is model:
            work["torchcam ScoreCAM"] = _peers(model, x)[1]("ScoreCAM")
            work["grad-cam ScoreCAM"] = _peers(model, x)[0]("ScoreCAM")
            work["torchcam ISCAM, at layer1"] = _peers(model, x)[1]("ISCAM", "layer1")
            work["iscam in bfloat16, at layer1"] = lambda: tp.explain(
                model, x, method="iscam", layer="layer1", target=3, precision="bfloat16"
            )
        found[name] = measured(work, 2) | {"cosine": float(torch.cosine_similarity(exact.flatten(), half.flatten(), 0))}
    return found


def first_use(x: Tensor) -> dict[str, float]:
    """Multiples of a forward pass for a new model, with the passes that validate the replay."""
    found = {}
    for name in ("gradcam", "ablationcam", "recipro-cam"):
        torch.manual_seed(0)
        model = resnet18().eval()
        run = forward(model, x)
        work = {"base": run, name: lambda name=name, model=model: tp.explain(model, x, method=name, layer="layer4")}
        work["base"]()
        seconds = interleaved(work, rounds=1, warm=False)
        found[name] = round(seconds[name][0] / seconds["base"][0], 2)
    return found


# Fewer draws and steps: the memory does not depend on their number.
_OPTIONS = {
    "sscam": {"samples": 1},
    "iscam": {"steps": 1},
    "smoothgradcam++": {"samples": 4},
    "integrated-gradcam": {"steps": 4},
    "opticam": {"steps": 2},
    "smoothgrad": {"samples": 4},
    "integrated-gradients": {"steps": 4},
    "occlusion": {"window": 112, "stride": 112},
    "rise": {"samples": 32},
}

_IN_A_PROCESS = """
import torch, torchpeek as tp
from torchvision.models import resnet18
torch.set_num_threads(1); torch.manual_seed(0)
model, x = resnet18().eval(), torch.randn(1, 3, 224, 224)
with torch.inference_mode():
    model(x)
def most():
    # Not ru_maxrss, which a process inherits from the one that started it.
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = most()
{work}
print((most() - before) / 1024)
"""


def memory() -> dict[str, float]:
    """The largest growth of a process after a forward pass, in MiB. Each method has a process of its own."""
    work = {
        "forward and backward to the layer (what gradcam needs)": "tp.explain(model, x, layer='layer4', target=3)",
        "forward and backward to the input": (
            "x.requires_grad_(); [p.requires_grad_(False) for p in model.parameters()]; "
            "torch.autograd.grad(model(x)[0, 3], x)"
        ),
    }
    for name in tp.METHODS:
        options = "".join(f", {key}={value!r}" for key, value in _OPTIONS.get(name, {}).items())
        work[name] = f"tp.explain(model, x, method={name!r}, layer='layer4', target=3{options})"
    return {
        name: round(float(subprocess.check_output([sys.executable, "-c", _IN_A_PROCESS.format(work=each)])))
        for name, each in work.items()
    }


def _peers(model: nn.Module, x: Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_grad_cam
        import torchcam.methods
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    def grad_cam(name: str) -> Callable[[], object]:
        def run() -> object:
            with getattr(pytorch_grad_cam, name)(model=model, target_layers=[model.layer4]) as extractor:
                return extractor(input_tensor=x, targets=[ClassifierOutputTarget(3)])

        return run

    def torchcam_(name: str, layer: str = "layer4") -> Callable[[], object]:
        def run() -> object:
            with getattr(torchcam.methods, name)(model, target_layer=layer) as extractor:
                return extractor(3, model(x))

        return run

    return grad_cam, torchcam_


def markdown(results: dict[str, Any]) -> str:
    """The section on methods."""
    table, theirs = results["short"], results["peers"]
    lines = [
        "## Methods",
        "",
        "ResNet-18, one picture of 224 x 224, one thread, at `layer4` unless the row says otherwise. The numbers are",
        f"multiples of a forward pass of {table['base_seconds'] * 1e3:.0f} ms, the median over {table['rounds']}",
        "interleaved rounds (one round for the other tools). The model has been explained before: on first use, a few",
        "more passes validate the replay.",
        "",
        "| | times a forward pass | goal |",
        "|---|---:|---:|",
    ]
    lines += [f"| {name} | {value:.2f} | {TARGETS.get(name, '')} |" for name, value in table["multiples"].items()]
    lines += [f"| {name} | {value:.2f} | |" for name, value in theirs["multiples"].items() if name != FORWARD]
    first = ", ".join(f"{name} {value:.1f}" for name, value in results["first use"].items())
    lines += ["", f"On first use: {first}.", ""]
    for key in ("scorecam", "iscam"):
        part = results[key]
        lines += [f"| {key} | times the first line |", "|---|---:|"]
        lines += [f"| {name} | {value:.2f} |" for name, value in part["multiples"].items()]
        lines += ["", f"The first line took {part['base_seconds']:.1f} s; {part['rounds']} round(s).", ""]
    half = results["bfloat16"]
    if isinstance(half, str):
        lines += [f"In bfloat16: not measured; {half}.", ""]
    else:
        for name, part in half.items():
            each = ", ".join(f"{key} {value:.2f}" for key, value in part["multiples"].items())
            lines += [
                f"In bfloat16, {name}, as multiples of scorecam in float32: {each}. Cosine: {part['cosine']:.5f}.",
                "",
            ]
    lines += ["| | largest growth in MiB, beyond a forward pass |", "|---|---:|"]
    lines += [f"| {name} | {value:.0f} |" for name, value in results["memory"].items()]
    return "\n".join([*lines, ""])
