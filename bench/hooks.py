"""The cost of recording, beside bare hooks and other libraries. Their values are compared before they are timed."""

from __future__ import annotations

import gc
import re
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50, vit_b_16

import torchpeek as tp
from torchpeek.hooks import Recording

Values = dict[str, Tensor]
Pass = Callable[[], Values]
"""Runs the model once and returns the recorded values."""


@dataclass(frozen=True)
class Case:
    """A network, its input, and the layers to record."""

    name: str
    model: nn.Module
    x: Tensor
    layers: list[str]
    repeats: int  # passes that are timed together, so that a clock tick does not matter


def cases() -> list[Case]:
    torch.manual_seed(0)
    small = nn.Sequential(*[nn.Linear(8, 8) for _ in range(200)]).eval()
    resnet, vit = resnet50().eval(), vit_b_16().eval()
    blocks = [name for name, module in resnet.named_modules() if type(module).__name__ == "Bottleneck"]
    encoder = [name for name, module in vit.named_modules() if type(module).__name__ == "EncoderBlock"]
    return [
        Case("200 small layers", small, torch.randn(1, 8), [name for name, _ in small.named_children()], 20),
        Case("ResNet-50, 16 blocks", resnet, torch.randn(1, 3, 224, 224), blocks, 1),
        Case("ViT-B/16, 12 blocks", vit, torch.randn(1, 3, 224, 224), encoder, 1),
    ]


def overwritten() -> Case:
    """BatchNorm outputs that a ReLU overwrites later. A tool is right if it gives what the layer returned."""
    torch.manual_seed(0)
    model = resnet50().eval()
    names = [f"layer1.{n}.bn{k}" for n in range(3) for k in (1, 2)]
    return Case("overwritten in place", model, torch.randn(1, 3, 64, 64), names, 1)


def oracle(case: Case) -> Values:
    """What the layers return, cloned at once."""
    values: Values = {}
    handles = [
        case.model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: values.__setitem__(name, output.detach().clone())
        )
        for name in case.layers
    ]
    with torch.no_grad():  # as in the timed passes: with gradients, attention is computed in another way
        case.model(case.x)
    for handle in handles:
        handle.remove()
    return values


# Each competitor is a context manager that gives a function. The function runs one pass. Tools that attach to each pass
# open nothing outside of it.


@contextmanager
def bare(case: Case) -> Any:
    yield lambda: case.model(case.x) is None or {}


def _floor(case: Case, keep: Callable[[Tensor], Tensor]) -> Any:
    slots: list[Tensor] = [case.x] * len(case.layers)

    def hook_for(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            slots[index] = keep(output)

        return hook

    def keeping(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            slots[index] = output

        return hook

    make = keeping if keep is _same else hook_for
    layers = [case.model.get_submodule(name) for name in case.layers]

    @contextmanager
    def opened() -> Any:
        handles = [layer.register_forward_hook(make(index)) for index, layer in enumerate(layers)]
        try:
            yield slots
        finally:
            for handle in handles:
                handle.remove()

    return opened


def _same(tensor: Tensor) -> Tensor:
    return tensor


def plain_hooks(keep: Callable[[Tensor], Tensor] = _same) -> Callable[[Case], AbstractContextManager[Pass]]:
    @contextmanager
    def opened(case: Case) -> Any:
        with _floor(case, keep)() as slots:

            def run() -> Values:
                case.model(case.x)
                return dict(zip(case.layers, slots, strict=True))

            yield run

    return opened


@contextmanager
def plain_hooks_each_pass(case: Case) -> Any:
    floor = _floor(case, _same)

    def run() -> Values:
        with floor() as slots:
            case.model(case.x)
            return dict(zip(case.layers, slots, strict=True))

    yield run


def torchpeek(**options: Any) -> Callable[[Case], AbstractContextManager[Pass]]:
    @contextmanager
    def opened(case: Case) -> Any:
        with tp.record(case.model, case.layers, **options) as tape:

            def run() -> Values:
                case.model(case.x)
                return tape

            yield run

    return opened


@contextmanager
def torchpeek_each_pass(case: Case) -> Any:
    def run() -> Values:
        with tp.record(case.model, case.layers) as tape:
            case.model(case.x)
        return tape

    yield run


@contextmanager
def torchextractor(case: Case) -> Any:
    from torchextractor import Extractor

    extractor = Extractor(case.model, case.layers)
    yield lambda: extractor(case.x)[1]


@contextmanager
def torchhook(case: Case) -> Any:
    from torchhook import HookManager

    manager = HookManager(case.model, max_size=1)
    for name in case.layers:
        manager.register_forward_hook(name)

    def run() -> Values:
        case.model(case.x)
        return {name: manager.features[name][-1] for name in case.layers}

    yield run
    for handle in manager.hooks.values():
        handle.remove()


@contextmanager
def captum(case: Case) -> Any:
    from captum.attr import LayerActivation

    activation = LayerActivation(case.model, [case.model.get_submodule(name) for name in case.layers])
    yield lambda: dict(zip(case.layers, activation.attribute(case.x), strict=True))


@contextmanager
def tdhook(case: Case) -> Any:
    from tdhook.latent.activation_caching import ActivationCaching

    with ActivationCaching("|".join(f"^{re.escape(name)}$" for name in case.layers)).prepare(case.model) as hooked:

        def run() -> Values:
            hooked(case.x)
            cache = hooked.hooking_context.cache
            return {name: cache[name] for name in case.layers}

        yield run


@contextmanager
def nnsight(case: Case) -> Any:
    import nnsight as nns

    wrapped = nns.NNsight(case.model)

    def run() -> Values:
        with wrapped.trace(case.x):
            outputs = {}.save()  # type: ignore[attr-defined]  # nnsight gives every object a save()
            for name in case.layers:
                outputs[name] = wrapped.get(name).output
        return dict(outputs)

    yield run


OURS: dict[str, Callable[[Case], AbstractContextManager[Pass]]] = {
    "no hooks": bare,
    "plain hooks, kept on": plain_hooks(),
    "torchpeek record, kept on": torchpeek(),
    "plain hooks, clone": plain_hooks(lambda tensor: tensor.detach().clone()),
    "torchpeek record, snapshot='clone'": torchpeek(snapshot="clone"),
    "torchpeek record, keep=gap": torchpeek(keep=tp.keep.gap),
    "torchpeek record, inputs=True": torchpeek(inputs=True),
    "plain hooks, put on for each pass": plain_hooks_each_pass,
    "torchpeek record, opened for each pass": torchpeek_each_pass,
}
PEERS: dict[str, Callable[[Case], AbstractContextManager[Pass]]] = {
    "torchextractor, kept on": torchextractor,
    "torchhook, kept on": torchhook,
    "captum LayerActivation, each pass": captum,
    "tdhook ActivationCaching, kept on": tdhook,
    "nnsight trace, each pass": nnsight,
}
FLOOR = "plain hooks, kept on"


def measure_case(case: Case, rounds: int) -> dict[str, Any]:
    """The median seconds of a pass for each competitor, and multiples of the floor."""
    truth = oracle(case)
    seconds: dict[str, list[float]] = {}
    wrong: dict[str, str] = {}
    work = {**OURS, **PEERS}
    for name, competitor in work.items():
        why = _why_wrong(case, competitor, truth)
        if why:
            wrong[name] = why
    timed = {name: competitor for name, competitor in work.items() if name not in wrong}
    seconds = {name: [] for name in timed}
    for number in range(rounds):
        for name in timed if number % 2 == 0 else reversed(timed):
            slow = name.startswith("nnsight")
            if slow and number % 5:
                continue
            seconds[name].append(_time(case, timed[name], 1 if slow else case.repeats))
    floor = statistics.median(seconds[FLOOR])
    return {
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "multiples": {name: round(statistics.median(each) / floor, 3) for name, each in seconds.items()},
        "least": {name: min(each) for name, each in seconds.items()},
        "layers": len(case.layers),
        "not timed": wrong,
    }


def _why_wrong(case: Case, competitor: Callable[[Case], AbstractContextManager[Pass]], truth: Values) -> str:
    if competitor is bare:
        return ""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with competitor(case) as run:
                recorded = run()
                checked = 0
                for name in recorded:
                    value = recorded[name].output if isinstance(recorded, Recording) else recorded[name]
                    expected = tp.keep.gap(truth[name]) if value.ndim < truth[name].ndim else truth[name]
                    if not torch.equal(value, expected):
                        return f"{name} is not what the layer returned"
                    checked += 1
        if checked < len(case.layers):
            return f"gives {checked} of {len(case.layers)} layers by name, so its values were not checked"
    except Exception as error:
        return f"does not run: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
    return ""


def _time(case: Case, competitor: Callable[[Case], AbstractContextManager[Pass]], repeats: int) -> float:
    gc.collect()
    gc.disable()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with competitor(case) as run:
                run()
                start = time.perf_counter()
                for _ in range(repeats):
                    run()
                return (time.perf_counter() - start) / repeats
    finally:
        gc.enable()


def measure_gradients(rounds: int) -> dict[str, float]:
    """ResNet-50 at `layer4`: the gradient of one layer, beside a forward pass and the backward pass to that layer."""
    torch.manual_seed(0)
    model, x = resnet50().eval(), torch.randn(1, 3, 224, 224)

    def floor() -> None:
        edges: list[Any] = []
        handle = model.layer4.register_forward_hook(
            lambda module, args, output: edges.append(torch.autograd.graph.get_gradient_edge(output))
        )
        score = model(x)[:, 0].sum()
        handle.remove()
        torch.autograd.grad(score, edges)

    def ours() -> None:
        with tp.record(model, "layer4", gradients=True) as tape:
            tape.grad(model(x)[:, 0].sum())

    def whole() -> None:
        with tp.record(model, "layer4", gradients=True) as tape:
            model(x)[:, 0].sum().backward()
        model.zero_grad()
        _ = tape["layer4"].grad_output

    def all_blocks() -> None:
        with tp.record(model, "layer?.*", exclude="layer?.*.*", gradients=True):
            model(x)[:, 0].sum().backward()
        model.zero_grad()

    def plain_step() -> None:
        model(x)[:, 0].sum().backward()
        model.zero_grad()

    return _multiples(
        {
            "forward, and backward down to layer4 by its edge": floor,
            "torchpeek, tape.grad": ours,
            "forward and whole backward": plain_step,
            "torchpeek, gradient of layer4 in a whole backward": whole,
            "torchpeek, gradients of 16 blocks in a whole backward": all_blocks,
        },
        rounds,
    )


def measure_small_gradients(rounds: int) -> dict[str, float]:
    """200 small layers: the gradients of all of them, beside hooks on their outputs that keep the gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(100) for layer in (nn.Linear(16, 16), nn.ReLU())))
    x = torch.randn(4, 16)
    names = [name for name, _ in model.named_children()]

    def step() -> None:
        model(x).sum().backward()

    def by_hand() -> dict[str, Tensor]:
        gradients: dict[str, Tensor] = {}

        def hook_for(name: str) -> Callable[..., None]:
            def keep(gradient: Tensor) -> None:
                gradients[name] = gradient

            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                output.register_hook(keep)

            return hook

        handles = [model.get_submodule(name).register_forward_hook(hook_for(name)) for name in names]
        step()
        for handle in handles:
            handle.remove()
        return gradients

    def ours() -> Recording:
        with tp.record(model, names, gradients=True) as tape:
            step()
        return tape

    expected, recorded = by_hand(), ours()
    assert all(torch.equal(recorded[name].grad_output, expected[name]) for name in names)
    return _multiples(
        {"tensor hooks by hand": by_hand, "torchpeek, gradients=True": ours, "forward and backward alone": step}, rounds
    )


def measure_statistics(rounds: int, batch: int) -> dict[str, float]:
    """The throughput of ResNet-50 with running statistics, as a share of that of the bare forward pass."""
    torch.manual_seed(0)
    model, x = resnet50().eval(), torch.randn(batch, 3, 224, 224)
    blocks = re.compile(r"^layer\d\.\d$")

    def forward() -> None:
        with torch.inference_mode():
            for _ in range(4):
                model(x)

    multiples = _multiples(
        {
            "forward pass": forward,
            "16 block outputs, no histogram": lambda: tp.statistics(model, [x] * 4, blocks, histogram=False),
            "16 block outputs, with histograms": lambda: tp.statistics(model, [x] * 4, blocks),
            "all 53 convolutions, with histograms": lambda: tp.statistics(model, [x] * 4, nn.Conv2d),
        },
        rounds,
    )
    return {name: round(1 / value, 3) for name, value in multiples.items()}


def _multiples(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    from timing import interleaved, ratios

    return {name: round(value, 3) for name, value in ratios(interleaved(work, rounds=rounds), next(iter(work))).items()}


def measure_all(rounds: int) -> dict[str, Any]:
    """Recording, gradients and statistics."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {"overwritten": who_is_right(), "recording": {}, "statistics": {}}
    for case in cases():
        print(f"measuring: recording, {case.name}", file=sys.stderr)
        results["recording"][case.name] = measure_case(case, rounds if case.repeats > 1 else max(3, rounds // 3))
    print("measuring: gradients", file=sys.stderr)
    results["gradients"] = measure_gradients(max(3, rounds // 2))
    results["small gradients"] = measure_small_gradients(3 * rounds)
    for threads, batch in ((1, 1), (2, 1), (2, 8)):
        torch.set_num_threads(threads)
        column = f"{threads} thread{'s' if threads > 1 else ''}, batch {batch}"
        print(f"measuring: statistics, {column}", file=sys.stderr)
        results["statistics"][column] = measure_statistics(max(3, rounds // 2 if batch == 1 else rounds // 4), batch)
    return results


def who_is_right() -> dict[str, str]:
    """What is wrong with each competitor's values if a later layer writes in place: a text, or an empty one."""
    case = overwritten()
    truth = oracle(case)
    return {name: _why_wrong(case, each, truth) for name, each in {**OURS, **PEERS}.items() if each is not bare}


TARGETS = {
    "torchpeek record, kept on": "1.3",
    "16 block outputs, no histogram": "0.85",
    "all 53 convolutions, with histograms": "0.35",
    "torchpeek, tape.grad": "1.0",
    "torchpeek, gradients=True": "2.0",
}


def markdown(results: dict[str, Any]) -> str:
    """The sections on recording, gradients and statistics."""
    recording, wrong = results["recording"], results["overwritten"]
    cases_ = list(recording)
    lines = [
        "## Recording",
        "",
        "The time of a pass under no_grad with one thread, as a multiple of a pass with plain forward hooks that keep",
        "a reference and stay attached. All values were compared with clones before anything was timed. *Right*: the",
        "values are what the layer returned even if a later ReLU writes in place.",
        "",
        "| | right | " + " | ".join(cases_) + " | goal, small layers |",
        "|---|---|" + "---:|" * (len(cases_) + 1),
    ]
    for name in {**OURS, **PEERS}:
        cells = [
            f"{recording[case]['multiples'][name]:.2f}" if name in recording[case]["multiples"] else "wrong or fails"
            for case in cases_
        ]
        right = "" if name not in wrong else "no" if wrong[name] else "yes"
        lines.append(f"| {name} | {right} | " + " | ".join(cells) + f" | {TARGETS.get(name, '')} |")
    small = recording[cases_[0]]
    seconds, count = small["least"], small["layers"]
    opened = seconds["torchpeek record, opened for each pass"] - seconds["torchpeek record, kept on"]
    plain = seconds["plain hooks, put on for each pass"] - seconds[FLOOR]
    floors = [f"{recording[case]['seconds'][FLOOR] * 1e3:.2f} ms" for case in cases_]
    lines.append("| *plain hooks, kept on* | | " + " | ".join(floors) + " | |")
    lines += [
        "",
        f"Opening and closing a recording around each pass costs {1e6 * opened / count:.1f} µs a layer (goal: 8).",
        f"Attaching and removing plain hooks, which torch does, takes {1e6 * plain / count:.1f} µs of them.",
        "",
        "## Gradients of ResNet-50",
        "",
        "Multiples of a forward pass and the backward pass to `layer4`.",
        "",
        "| | | goal |",
        "|---|---:|---:|",
        *(f"| {name} | {value:.2f} | {TARGETS.get(name, '')} |" for name, value in results["gradients"].items()),
        "",
        "## Gradients of 200 small layers",
        "",
        "Multiples of a forward and backward pass with a hand-written hook on each output, which keeps its gradient.",
        "The hooks are attached for each pass. torchpeek also records the outputs, and the gradients of the inputs.",
        "",
        "| | | goal |",
        "|---|---:|---:|",
        *(
            f"| {name} | {value:.2f} | {TARGETS.get(name, '')} |"
            for name, value in results.get("small gradients", {}).items()
        ),
        "",
        "## Statistics of ResNet-50",
        "",
        "Pictures per second with `statistics`, as a share of those of the bare forward pass.",
        "",
        "| | " + " | ".join(results["statistics"]) + " | goal |",
        "|---|" + "---:|" * (len(results["statistics"]) + 1),
    ]
    for name in next(iter(results["statistics"].values())):
        cells = [f"{column[name]:.2f}" for column in results["statistics"].values()]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {TARGETS.get(name, '')} |")
    return "\n".join([*lines, ""])
