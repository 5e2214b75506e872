"""The feature maps of one sample, from a tensor or a trace, and what each channel contributes to the score."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from torchpeek.engine import Layout, Trace, label_noun, score_kind
from torchpeek.errors import InputError, OptionError
from torchpeek.errors import shown as in_words
from torchpeek.tensor_formats import dense


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """The feature maps of one sample.

    Args:
        maps: (C, *grid).
        title: The layer's name, where it is known.
        remark: What was left out of the layer's output, in words.
        contributions: (C,): what each channel contributes to the score, where it is known.
        score: The score of a trace, in words.
    """

    maps: Tensor
    title: str = ""
    remark: str = ""
    contributions: Tensor | None = None
    score: str = ""

    def chosen(self, channels: Iterable[int] | None, most: int, sort: str) -> tuple[list[int], str]:
        """The channels to show, in their order, and how many of how many they are, in words."""
        total = len(self.maps)
        candidates = list(range(total)) if channels is None else _indices(channels, total)
        if sort == "contribution":
            if self.contributions is None:
                raise OptionError(
                    "sort='contribution' needs the gradient of a score. Next: give a trace in place of the activation, "
                    "tp.trace(model, inputs, layer=..., target=...), or contributions="
                )
            of_candidates = self.contributions[candidates].nan_to_num(nan=-torch.inf)
            candidates = [candidates[i] for i in of_candidates.sort(descending=True, stable=True).indices.tolist()]
        shown = candidates[:most] if channels is None else candidates
        plural = "channel" if total == 1 else "channels"
        if sort == "contribution":
            return shown, f"{_share(len(shown), total)} {plural}, largest contribution first"
        if channels is not None:
            return shown, f"{len(shown)} of {total} {plural}"
        return shown, f"{'first ' if len(shown) < total else ''}{_share(len(shown), total)} {plural}"

    def label(self, channel: int) -> str:
        """The channel's number, with its contribution where it is known."""
        return str(channel) if self.contributions is None else f"{channel}: {float(self.contributions[channel]):+.3g}"

    def contributed(self, channels: list[int]) -> str:
        """What contributions are, and what those of the channels sum to, in words; "" where they are not known."""
        if self.contributions is None:
            return ""
        shown, whole = float(self.contributions[channels].sum()), float(self.contributions.sum())
        sums = (
            f"those shown sum to {shown:.3g} of {whole:.3g}" if len(channels) < len(self.maps) else f"sum {whole:.3g}"
        )
        if not self.contributions.any():
            sums = "each of them is 0, so their order says nothing"
        if not self.score:
            return f"contributions as given; {sums}"
        return f"contribution to {self.score}: gradient x activation, summed over the grid; {sums}"


def traced_maps(trace: Trace, *, with_contributions: bool) -> FeatureMaps:
    """The maps of a trace of one sample, and their contributions to its one score."""
    layout, count = trace.at[trace.layer].layout, len(trace.activations)
    if count != 1:
        raise InputError(
            f"the trace holds {count} samples; allowed: one. Next: trace one of them, tp.trace(model, x[n:n + 1], "
            "...), or take the first, trace.first(1)"
        )
    found = FeatureMaps(trace.activations[0, 0].detach(), trace.layer, _left_out(layout))
    if not with_contributions:
        return found
    if trace.scores.shape[1] != 1:
        raise InputError(
            f"the trace asks for {trace.scores.shape[1]} scores, and a channel contributes to each. Next: ask for one, "
            "trace.with_target(tp.targets.Classes(...))"
        )
    return replace(found, contributions=trace.contributions[0, 0].detach().cpu().double(), score=_score_words(trace))


def returned_maps(activation: Tensor, layout: Layout | None, contributions: Tensor | None) -> FeatureMaps:
    """The maps of one sample from what a layer returned, and contributions that the user gives."""
    if layout is None:
        maps, remark = _maps_without_layout(activation), ""
    else:
        layout = replace(layout, part="")
        count = activation.shape[layout.batch_axis] if activation.ndim > layout.batch_axis else 0
        if count != (layout.views or 1) or not layout.fits(activation, 1):
            raise InputError(
                f"activation has shape {tuple(activation.shape)}, which is no output for one sample in the layout "
                f"{str(layout)!r}. Next: take one of several samples, activation[n:n + 1], or give the layout "
                "that it has"
            )
        maps, remark = layout.to_grid(layout.taken(activation))[0], _left_out(layout)
    if contributions is not None:
        contributions = dense(torch.as_tensor(contributions), "contributions").detach().cpu().double()
        if contributions.shape != (len(maps),):
            raise InputError(
                f"contributions has shape {tuple(contributions.shape)}; allowed: ({len(maps)},), a number for each "
                "channel, such as trace.contributions[0, 0]"
            )
    return FeatureMaps(maps, "", remark, contributions)


def _maps_without_layout(activation: Tensor) -> Tensor:
    if activation.ndim in (4, 5) and len(activation) == 1:
        return activation[0]
    if activation.ndim == 3:
        return activation
    next_step = {
        2: "for a signal (C, w) give activation[:, None], for tokens layout= or a trace, tp.trace(model, x, layer=...)",
        4: "take one of several samples, activation[n], or for a volume (C, d, h, w) give activation[None]",
    }.get(activation.ndim, "take one of several samples, activation[n]")
    raise InputError(
        f"activation has shape {tuple(activation.shape)}; allowed: (C, h, w) or (1, C, *grid), channels first. Next: "
        f"{next_step}"
    )


def _left_out(layout: Layout) -> str:
    """The tokens outside the grid, in words."""
    parts = [(layout.prefix, "before the grid", ", such as a class token"), (layout.suffix, "after the grid", "")]
    return "; ".join(
        f"{count} {'token' if count == 1 else 'tokens'} {place} left out{example}"
        for count, place, example in parts
        if count
    )


def _score_words(trace: Trace) -> str:
    question, label = trace.question, int(trace.question.labels[0, 0])
    noun, names = label_noun(question), trace.origin.class_names
    name = names[label] if noun is None and names and 0 <= label < len(names) else f"{noun or 'class'} {label}"
    return f"the {score_kind(question)} of {name} ({float(trace.scores[0, 0]):.3g})"


def _share(shown: int, total: int) -> str:
    return f"{shown} of {total}" if shown < total else f"all {total}" if total > 1 else "1"


def _indices(channels: Iterable[int], total: int) -> list[int]:
    try:
        chosen = [operator.index(channel) for channel in channels]
    except TypeError:
        raise OptionError(f"channels is {in_words(channels)}; allowed: indices of channels, such as [0, 3]") from None
    if not chosen:
        raise OptionError("channels is empty; name at least one, or None for the first ones")
    wrong = [channel for channel in chosen if not 0 <= channel < total]
    if wrong:
        raise OptionError(f"channel {wrong[0]} is not in the activation; allowed channels: 0 to {total - 1}")
    return chosen
