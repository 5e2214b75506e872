"""What is checked of one network: each check against plain hooks of its own, none stopping the others."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import torchpeek as tp
from matrix.building import Architecture, Float64Throughout, built, hooked, pictures
from torchpeek.errors import Notice, StaleCapture
from torchpeek.hooks import containers

ATTENTION_METHODS = ("rollout", "legrad", "transformer-attribution")

# How far a gradient may be off the finite difference, relative to it. The differences are good to about 1e-8.
GRADIENT_TOLERANCE = 1e-5
# How far a replay may be off a whole pass of another batch size, relative to the largest score.
REPLAY_TOLERANCE = 1e-8
# Relative to the typical activation. A smaller step crosses fewer kinks, and is rounded more.
STEPS = (1e-4, 1e-5, 1e-6, 1e-7)
# How far the centre of a change has to move with it, as a part of the grid; in a wrong reading it is up to 0.05.
FOLLOWS, DRAWS = 0.05, 6
# More channels than this, and recipro-cam stands in for ablationcam, which changes one at a time.
MOST_CHANNELS = 512


class Unmet(AssertionError):
    """A check that did not hold. Its message is the reason that is listed."""


@dataclass
class Subject:
    """One network under examination, its pictures, and what is known so far."""

    architecture: Architecture
    model: nn.Module
    x: Tensor  # (2, 3, H, W)
    target: Any  # None: the predicted class
    found: dict[str, Any] = field(default_factory=dict)
    trace: tp.Trace | None = None

    @property
    def traced(self) -> tp.Trace:
        if self.trace is None:
            self.trace = tp.trace(self.model, self.x, target=self.target)
        return self.trace

    def scores(self, images: Tensor | None = None) -> Tensor:
        """(n, entries): what the model says, without torchpeek."""
        with torch.no_grad():
            output: Any = self.model((self.x if images is None else images).clone())
        return self.read(output)

    def read(self, output: Any) -> Tensor:
        part = self.architecture.embedding
        found: Tensor = output[part] if part else output if isinstance(output, Tensor) else output["logits"]
        return found

    @property
    def labels(self) -> Tensor:
        """(2, 1): the entry that is asked about."""
        scores = self.scores()
        return scores.argmax(1, keepdim=True) if self.target is None else torch.zeros(len(scores), 1, dtype=torch.long)


def examined(architecture: Architecture) -> dict[str, Any]:
    """One row of the matrix: for each check "ok" or the reason why not, and what was found on the way."""
    started = time.perf_counter()
    row: dict[str, Any] = {"model": str(architecture), "family": architecture.family, "size": architecture.size}
    failed: dict[str, str] = {}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            model = built(architecture)
        except Exception as error:
            return {**row, "failed": {"built": said(error)}, "seconds": time.perf_counter() - started}
        seen.clear()
        target = None if architecture.embedding is None else tp.targets.Output(0, part=architecture.embedding)
        subject = Subject(architecture, model, pictures(architecture, 2), target)
        seconds = {"built": time.perf_counter() - started}
        with unchanged(model, failed):
            for check in (
                check_layers,
                check_record,
                check_gradient,
                check_place,
                check_whole,
                check_methods,
                check_attention,
                check_replay,
            ):
                before, name = time.perf_counter(), check.__name__.removeprefix("check_")
                try:
                    check(subject)
                except Exception as error:
                    failed[name] = said(error)
                seconds[name] = round(time.perf_counter() - before, 2)
    notices = dict.fromkeys(str(each.message) for each in seen if issubclass(each.category, Notice))
    ours = [each for each in seen if "torchpeek" in each.filename and not issubclass(each.category, Notice)]
    if ours:
        failed["quiet"] = f"{ours[0].category.__name__}: {ours[0].message}"
    parameters = sum(each.numel() for each in model.parameters())
    more = {"parameters": parameters, "notices": list(notices), "seconds": round(time.perf_counter() - started, 1)}
    return {**row, **subject.found, "failed": failed, **more, "times": seconds}


def check_layers(subject: Subject) -> None:
    """The table has every layer, with shapes where one was called, and a suggestion, which has a reason."""
    table = tp.layers(subject.model, subject.x)
    demand(
        [row.name for row in table.rows] == [name for name, _ in subject.model.named_modules() if name], "other layers"
    )
    called = {row.name for row in table.rows if row.output is not None}
    seen: set[str] = set()
    with hooked(_layers(subject.model), lambda name, output: seen.add(name)):
        subject.scores()
    demand(called == seen, f"called: {sorted(called ^ seen)[:3]} differ")
    subject.found |= {"layers": len(table.rows)}
    if table.suggested is not None:
        subject.found |= {"suggested": table.suggested.layer, "reason": table.suggested.reason}


def check_record(subject: Subject) -> None:
    """Recording every layer changes no bit of the output, and each recorded output is what a plain hook sees."""
    model, x = subject.model, subject.x
    with torch.no_grad():
        plain: Any = model(x.clone())
        again: Any = model(x.clone())
    demand(same(plain, again), "the model itself does not say the same twice")
    seen: dict[str, list[Any]] = {}

    def keep(name: str, output: Any) -> None:
        seen.setdefault(name, []).append(containers.mapped(output, lambda _, each: each.clone()))

    with hooked(_layers(model), keep), torch.no_grad():
        model(x.clone())
    for snapshot in ("auto", "clone"):  # without copies, what the model writes into later on cannot be read
        with torch.no_grad(), tp.record(model, "*", snapshot=snapshot) as tape:
            recorded: Any = model(x.clone())
        demand(same(plain, recorded), f"the output differs in some bit while it is recorded ({snapshot})")
        demand(set(tape) == set(_layers(model)), "some layers are not recorded")
        try:
            for name, outputs in seen.items():
                calls = list(tape[name])
                demand(len(calls) == len(outputs), f"{name} was called {len(outputs)} times, recorded {len(calls)}")
                for call, output in zip(calls, outputs, strict=True):
                    demand(same(call.output, output), f"what is recorded of {name} is not what it returned")
            break
        except StaleCapture:
            demand(snapshot == "auto", "stale, though it was copied")
            subject.found["recorded with"] = "clone"


def check_gradient(subject: Subject) -> None:
    """The trace's gradient, along random directions at the grid, against central differences by a plain hook."""
    heatmap = tp.explain(subject.model, subject.x, method="gradcam", target=subject.target)
    trace = subject.traced
    layout = trace.at[trace.layer].layout
    subject.found |= {"layer": trace.layer, "layout": str(layout), "channels": trace.activations.shape[2]}
    subject.found |= {"kind": type(subject.model.get_submodule(trace.layer)).__name__}
    demand(heatmap.values.shape == (2, 1, *layout.grid), f"the map is {tuple(heatmap.values.shape)}")
    weights = trace.gradients.flatten(3).mean(3)  # (N, 1, C)
    expected = torch.einsum("nkc,nc...->nk...", weights, trace.activations[:, 0])
    demand(near(heatmap.values, expected, 1e-9), "gradcam is not the sum of channels times mean gradients")
    demand(bool(trace.gradients.flatten(1).any(1).all()), "the gradient is zero everywhere in some sample")
    error = gradient_error(subject, trace, range(2))
    if GRADIENT_TOLERANCE < error < 1:
        with Float64Throughout():
            thorough = tp.trace(subject.model, subject.x, target=subject.target)
            without_rounding = gradient_error(subject, thorough, range(2))
        if without_rounding <= GRADIENT_TOLERANCE:
            subject.found["float32 inside"] = error
            error = without_rounding
    if error > GRADIENT_TOLERANCE:  # these directions met a kink, perhaps
        error = gradient_error(subject, trace, range(2, 6), of=2)
    subject.found["gradient error"] = error
    demand(error <= GRADIENT_TOLERANCE, f"gradient and finite difference differ by {error:.1e} of it")


def gradient_error(subject: Subject, trace: tp.Trace, seeds: range, of: int | None = None) -> float:
    """The largest over random directions; the largest of the best `of` of them."""
    return sorted(directional_error(subject, trace, seed) for seed in seeds)[: of or len(seeds)][-1]


def directional_error(subject: Subject, trace: tp.Trace, seed: int) -> float:
    """The smallest over the steps of the largest relative error over the samples."""
    generator = torch.Generator().manual_seed(seed)
    activation, gradient = trace.activations[:, 0], trace.gradients[:, 0]  # (N, C, *grid)
    direction = torch.randn(activation.shape, generator=generator, dtype=torch.float64)
    claimed = (gradient * direction).flatten(1).sum(1)  # (N,)
    typical = float(activation.square().mean().sqrt()) or 1.0
    labels = subject.labels
    best = math.inf
    for relative in STEPS:
        step = relative * typical
        up, down = (moved_scores(subject, trace, sign * step * direction).gather(1, labels) for sign in (1, -1))
        found = (up - down).squeeze(1) / (2 * step)
        scale = torch.maximum(found.abs(), claimed.abs())
        best = min(best, float(((found - claimed).abs() / scale).nan_to_num(math.inf).max()))
        if best <= GRADIENT_TOLERANCE / 10:
            break
    return best


def moved_scores(subject: Subject, trace: tp.Trace, added: Tensor) -> Tensor:
    """(N, entries): a whole pass in which the layer says more by `added` (N, C, *grid)."""
    layout = trace.at[trace.layer].layout

    def move(name: str, output: Any) -> Any:
        taken = layout.taken(output)
        return layout.returned(output, taken + layout.from_grid(added, torch.zeros_like(taken)).to(taken.dtype))

    with hooked({"": subject.model.get_submodule(trace.layer)}, move):
        return subject.scores()


def check_place(subject: Subject) -> None:
    """The grid lies on the picture: what changes in its top, bottom, left or right half, changes there in the map.

    In a wrong reading, transposed or with channels for positions, it would not. Of (N, C, H, W) there is no other
    reading, and at the end of a convolutional network everything changes everywhere.
    """
    trace = subject.traced
    layout = trace.at[trace.layer].layout
    if layout.kind == "channels-first":
        return
    follows = followed(subject, subject.model)
    if min(follows) < FOLLOWS:  # with residual branches as weak as they start, less is mixed
        follows = followed(subject, built(subject.architecture, revived=False))
    subject.found["follows"] = [round(each, 3) for each in follows]
    demand(
        bool(subject.architecture.mixed) or min(follows) >= FOLLOWS,
        f"what changes in a half of the picture changes anywhere in the map: {follows}",
    )


def followed(subject: Subject, model: nn.Module) -> tuple[float, float]:
    """How far the centre of the change moves down and right with the half that changes, as a part of the grid."""
    layout = subject.traced.at[subject.traced.layer].layout
    height, width = layout.grid
    kept: list[Tensor] = []
    generator = torch.Generator().manual_seed(2)
    x, half = subject.x[:1], subject.architecture.size // 2
    halves = [(slice(0, half), slice(None)), (slice(half, None), slice(None))]
    halves += [(slice(None), slice(0, half)), (slice(None), slice(half, None))]
    images = [x]
    for _ in range(DRAWS):
        for rows, columns in halves:
            other = x.clone()
            other[..., rows, columns] = torch.randn(x[..., rows, columns].shape, generator=generator, dtype=x.dtype)
            images.append(other)
    layer = model.get_submodule(subject.traced.layer)
    with (
        hooked({"": layer}, lambda _, output: kept.append(layout.to_grid(layout.taken(output)).clone())),
        torch.no_grad(),
    ):
        model(torch.cat(images))
    change = (kept[0][1:] - kept[0][:1]).square().sum(1)  # (4 DRAWS, h, w)
    change = change / change.flatten(1).sum(1).view(-1, 1, 1)
    down = (change.sum(2) * torch.arange(height)).sum(1).view(DRAWS, 4).mean(0)  # (4,): its centre
    right = (change.sum(1) * torch.arange(width)).sum(1).view(DRAWS, 4).mean(0)
    return float(down[1] - down[0]) / max(1, height - 1), float(right[3] - right[2]) / max(1, width - 1)


def check_whole(subject: Subject) -> None:
    """How much of the picture goes around the layer: 0 where another picture makes no difference behind it.

    Noted, and no condition: the norm that a transformer's class token reads has a residual branch beside it.
    """
    layer = subject.model.get_submodule(subject.traced.layer)
    kept: list[Any] = []
    with hooked({"": layer}, lambda _, output: kept.append(containers.mapped(output, lambda _, each: each.clone()))):
        theirs = subject.scores(subject.x[:1])
    with hooked({"": layer}, lambda _, output: containers.mapped(kept[0], lambda _, each: each.clone())):
        mixed = subject.scores(subject.x[1:])
    own = subject.scores(subject.x[1:])
    around = float((mixed - theirs).norm() / (own - theirs).norm())
    subject.found["goes around"] = round(around, 3)


def check_methods(subject: Subject) -> None:
    """Five methods from one trace; one of them changes the layer's output and so replays."""
    channels = subject.traced.activations.shape[2]
    changes = "ablationcam" if channels <= MOST_CHANNELS else "recipro-cam"
    grid = subject.traced.at[subject.traced.layer].layout.grid
    methods = ["gradcam", "layercam", "eigencam", "hirescam", changes]
    subject.found["methods"] = works = {}
    try:
        maps = tp.compare(subject.model, subject.x, methods=methods, target=subject.target)
    except Exception:  # one by one, to say which
        maps = {}
        for name in methods:
            try:
                maps[name] = tp.explain(subject.model, subject.x, method=name, target=subject.target)
            except Exception as error:
                works[name] = said(error)
    for name, heatmap in maps.items():
        fits = heatmap.values.shape == (2, 1, *grid) and heatmap.provenance.layer == subject.traced.layer
        works[name] = "ok" if fits else f"{tuple(heatmap.values.shape)} at {heatmap.provenance.layer}"
        if not bool(heatmap.values.any()):
            works[name] = "zero everywhere"
    wrong = {name: why for name, why in works.items() if why != "ok"}
    demand(not wrong, "; ".join(f"{name}: {why}" for name, why in wrong.items()))


def check_attention(subject: Subject) -> None:
    """Methods that read attention weights: noted, whether or not they apply to this network."""
    for name in ATTENTION_METHODS:
        if name in tp.METHODS:
            try:
                heatmap = tp.explain(subject.model, subject.x, method=name, target=subject.target)
                works = "ok" if heatmap.values.shape[:1] == (2,) and heatmap.values.any() else "zero everywhere"
            except tp.TorchpeekError as error:
                works = said(error)
            subject.found.setdefault("attention", {})[name] = works
            if works.startswith("MethodNotApplicable"):  # for the others, too
                return


def check_replay(subject: Subject) -> None:
    """Three changes of the layer's output, by a replay, against whole passes with a plain hook; used or refused."""
    trace = tp.trace(subject.model, subject.x, target=subject.target, gradients=False)
    layout, labels, trials = trace.at[trace.layer].layout, subject.labels, 3
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        got = trace.ablate(something_else, trials)  # (N, trials, 1)
    refusals = [str(each.message) for each in seen if str(each.message).startswith("whole passes for each change")]
    subject.found["replay"] = refusals[0].partition(" after it ")[2] if refusals else "used"
    for trial in range(trials):

        def change(name: str, output: Any, trial: int = trial) -> Any:
            taken = layout.taken(output)
            count = len(taken)
            changed = something_else(layout.to_grid(taken).clone(), torch.arange(count), torch.full((count,), trial))
            return layout.returned(output, layout.from_grid(changed, taken).contiguous())

        with hooked({"": subject.model.get_submodule(trace.layer)}, change):
            expected = subject.scores().gather(1, labels)
        demand(
            near(got[:, trial], expected, REPLAY_TOLERANCE),
            f"{subject.found['replay']}, but not what whole passes give",
        )
        demand(not near(expected, trace.scores, 1e-12), "the change makes no difference")


def something_else(activation: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
    """Other channels, weaker or stronger, in every trial."""
    factor = 0.3 + 0.2 * trials.to(activation).view(-1, *(1 for _ in activation.shape[1:]))
    return activation.roll(1, dims=1) * factor


@contextmanager
def unchanged(model: nn.Module, failed: dict[str, str]) -> Iterator[None]:
    """Notes in `failed` what about the model is not as it was."""
    before = state(model)
    yield
    after = state(model)
    changed = [key for key in before if not alike(before[key], after[key])]
    if changed or before.keys() != after.keys():
        failed["left as found"] = f"changed: {', '.join(changed[:3]) or sorted(before.keys() ^ after.keys())[:3]}"


def state(model: nn.Module) -> Mapping[str, Any]:
    """Parameters, buffers, modes, hooks and own forwards, in a form that can be compared."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    found: dict[str, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[f"value of {name}"] = tensor.detach().clone()
        found[f"rest of {name}"] = (id(tensor), tensor.requires_grad, tensor.grad is None)
    for name, module in model.named_modules():
        hooks = tuple(tuple(map(id, getattr(module, kind).values())) for kind in kinds)
        found[f"module {name!r}"] = (module.training, hooks, module.__dict__.get("forward"), list(module.__dict__))
    return found


def alike(one: Any, other: Any) -> bool:
    """Equal, tensors bit by bit, NaN being NaN."""
    if isinstance(one, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and bool(((one == other) | (one != one)).all())
    return bool(one == other)


def same(one: Any, other: Any) -> bool:
    """Whether all tensors in two outputs are bit for bit the same."""
    ours, theirs = dict(containers.leaves(one)), dict(containers.leaves(other))
    return ours.keys() == theirs.keys() and all(alike(ours[path], theirs[path]) for path in ours)


def near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors are the same up to a part of the largest number."""
    return one.shape == other.shape and bool((one - other).abs().max() <= tolerance * other.abs().max())


def demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Unmet(otherwise)


def said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Unmet) else f"{type(error).__name__}: {text}"


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if name}
