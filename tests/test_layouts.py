"""How layers are read: (N, C, *grid) of whatever they return, against the raw tensor taken apart by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import replicas
import torchpeek as tp
from networks import Laid
from torchpeek.errors import InputError, NoSpatialLayer, Notice

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Case:
    """A network whose layer returns its tokens in some way, and what an input for it is."""

    kind: str
    size: tuple[int, ...]
    patch: tuple[int, ...]
    prefix: int = 0
    suffix: int = 0
    wrap: str = "tensor"
    declared: dict[str, Any] | None = None  # of the model's own configuration

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(size // patch for size, patch in zip(self.size, self.patch, strict=True))

    @property
    def others(self) -> int:
        return self.prefix + self.suffix

    def made(self) -> nn.Module:
        model = Laid(self.kind, self.patch, self.prefix, self.suffix, self.wrap).double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter))
            model.patch.weight.mul_(0.3)
        for name, value in (self.declared or {}).items():
            setattr(model, name, value)
        return model

    def inputs(self, count: int = 2) -> Tensor:
        return torch.randn(count, 3, *self.size, dtype=torch.float64)

    def tensor(self, output: Any) -> Tensor:
        return {"tensor": lambda: output, "tuple": lambda: output[0], "dict": lambda: output["tokens"]}[self.wrap]()

    def rewrapped(self, output: Any, tensor: Tensor) -> Any:
        return {
            "tensor": lambda: tensor,
            "tuple": lambda: (tensor, output[1]),
            "dict": lambda: {**output, "tokens": tensor},
        }[self.wrap]()

    def places(self, number: int) -> Callable[[int], tuple[Any, ...]]:
        """The index, in what the layer returned, of a position of the grid for a sample: all its channels."""
        where = np.unravel_index(number, self.grid)
        return {
            "channels-first": lambda n: (n, slice(None), *where),
            "channels-last": lambda n: (n, *where, slice(None)),
            "tokens": lambda n: (n, self.prefix + number, slice(None)),
            "channel-tokens": lambda n: (n, slice(None), self.prefix + number),
            "sequence-first": lambda n: (self.prefix + number, n, slice(None)),
        }[self.kind]

    def by_hand(self, tensor: Tensor, count: int) -> Tensor:
        """(N, C, *grid), one position after the other."""
        made = torch.zeros(count, 6, *self.grid, dtype=tensor.dtype)
        for number, where in enumerate(np.ndindex(*self.grid)):
            for n in range(count):
                made[(n, slice(None), *where)] = tensor[self.places(number)(n)]
        return made

    def put_back(self, tensor: Tensor, values: Tensor) -> Tensor:
        """The raw tensor with other values (N, C, *grid) at the positions of the grid, and nothing else changed."""
        changed = tensor.clone()
        for number, where in enumerate(np.ndindex(*self.grid)):
            for n in range(len(values)):
                changed[self.places(number)(n)] = values[(n, slice(None), *where)]
        return changed


CASES = {
    "maps": Case("channels-first", (16, 24), (4, 4)),
    "maps of patches that do not divide": Case("channels-first", (19, 26), (4, 4)),
    "maps of a spectrogram": Case("channels-first", (16, 80), (2, 16)),
    "maps, channels last": Case("channels-last", (16, 24), (4, 4)),
    "maps, channels last, of a spectrogram": Case("channels-last", (16, 80), (2, 16)),
    "maps in a tuple": Case("channels-first", (16, 16), (4, 4), wrap="tuple"),
    "maps, channels last, in a dict": Case("channels-last", (16, 16), (4, 4), wrap="dict"),
    "tokens": Case("tokens", (16, 24), (4, 4)),
    "tokens and 1": Case("tokens", (16, 24), (4, 4), 1),
    "tokens and 2": Case("tokens", (20, 20), (4, 4), 2),
    "tokens and 5": Case("tokens", (24, 16), (4, 4), 5),
    "tokens of patches that do not divide": Case("tokens", (19, 26), (4, 4), 1),
    "tokens of a spectrogram": Case("tokens", (16, 80), (2, 16), 2),
    "tokens, and 1": Case("tokens", (16, 24), (4, 4), 0, 1),
    "2, tokens, and 1": Case("tokens", (20, 20), (4, 4), 2, 1),
    "sequence, and 1": Case("sequence-first", (16, 24), (4, 4), 0, 1),
    "signal of tokens, and 1": Case("tokens", (46,), (4,), 0, 1),
    "volume of tokens, and 2": Case("tokens", (6, 8, 12), (2, 4, 4), 0, 2),
    "1, tokens, and 3": Case(
        "tokens", (16, 24), (4, 4), 1, 3, declared={"config": SimpleNamespace(num_detection_tokens=3)}
    ),
    "tokens in a tuple": Case("tokens", (16, 24), (4, 4), 1, wrap="tuple"),
    "tokens in a dict": Case("tokens", (16, 24), (4, 4), 1, wrap="dict"),
    "channels and tokens": Case("channel-tokens", (16, 24), (4, 4)),
    "channels and 1 and tokens": Case("channel-tokens", (16, 24), (4, 4), 1, declared={"num_prefix_tokens": 1}),
    "sequence": Case("sequence-first", (16, 24), (4, 4)),
    "sequence and 1": Case("sequence-first", (16, 24), (4, 4), 1),
    "sequence in a tuple": Case("sequence-first", (16, 24), (4, 4), 1, wrap="tuple"),
    "signal": Case("channels-first", (48,), (4,)),
    "signal of tokens": Case("tokens", (48,), (4,)),
    "signal of tokens and 1": Case("tokens", (46,), (4,), 1),
    "signal as a sequence": Case("sequence-first", (48,), (4,), 1),
    "volume": Case("channels-first", (6, 8, 12), (2, 4, 4)),
    "volume, channels last": Case("channels-last", (6, 8, 12), (2, 4, 4)),
    "volume of tokens": Case("tokens", (6, 8, 12), (2, 4, 4)),
    "volume of tokens and 1": Case("tokens", (6, 8, 12), (2, 4, 4), 1),
    "volume as a sequence": Case("sequence-first", (6, 8, 12), (2, 4, 4), 2),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def raw(model: nn.Module, x: Tensor, change: Callable[[Any], Any] | None = None) -> tuple[Any, Any]:
    """What the layer and the model return, by a hook of our own, which may change the former."""
    seen: list[Any] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        seen.append(output)
        return None if change is None else change(output)

    handle = model.layer.register_forward_hook(hook)
    try:
        output = model(x)
    finally:
        handle.remove()
    return seen[0], output


def gradients(case: Case, model: nn.Module, x: Tensor, labels: list[list[int]]) -> Tensor:
    """(N, K, C, *grid), one class and sample after the other, through the whole model."""
    returned, output = raw(model, x)
    made = []
    for n, row in enumerate(labels):
        for label in row:
            (gradient,) = torch.autograd.grad(output[n, label], case.tensor(returned), retain_graph=True)
            made.append(case.by_hand(gradient, len(x))[n])
    return torch.stack(made).unflatten(0, (len(labels), -1))


LABELS = [[2, 0, 3], [1, 1, 0]]


class TestEveryLayout:
    @every_case
    def test_activations_and_gradients(self, case: Case) -> None:
        model, x = case.made(), case.inputs()
        trace = tp.trace(model, x, layer="layer", target=LABELS)
        layout = trace.at["layer"].layout
        assert (layout.kind, layout.grid, layout.prefix, layout.suffix) == (
            case.kind,
            case.grid,
            case.prefix,
            case.suffix,
        )
        expected = case.by_hand(case.tensor(raw(model, x)[0]).detach(), 2)
        assert torch.equal(trace.activations.squeeze(1), expected)
        found = gradients(case, model, x, LABELS)
        torch.testing.assert_close(trace.gradients, found, rtol=1e-10, atol=1e-13)
        assert float(found.flatten(2).norm(dim=2).min()) > 1e-6  # there is something to compare

    @every_case
    def test_alone_or_under_the_suggested_name(self, case: Case) -> None:
        """A batch of one, whose axis of samples any axis of length 1 could be; and the layer that is suggested."""
        model, x = case.made(), case.inputs(1)
        trace = tp.trace(model, x, target=[[1]])
        assert trace.layer == "layer"
        torch.testing.assert_close(trace.gradients, gradients(case, model, x, [[1]]), rtol=1e-10, atol=1e-13)

    @every_case
    def test_changed_activations_are_put_back(self, case: Case) -> None:
        """By a replay; the tokens that are not of the grid stay as they were."""
        model, x = case.made(), case.inputs()
        trace = tp.trace(model, x, layer="layer", target=LABELS)
        factors = torch.tensor([0.0, -1.5, 0.5], dtype=torch.float64)

        def edit(activation: Tensor, rows: Tensor, trials: Tensor) -> Tensor:
            shape = (-1, *(1 for _ in activation.shape[1:]))
            ramp = torch.linspace(0, 1, activation[0].numel(), dtype=torch.float64).view(1, *activation.shape[1:])
            return activation * factors[trials].view(shape) + ramp * rows.view(shape)

        with warnings.catch_warnings():
            warnings.simplefilter("error", Notice)  # that it was no replay
            scores = trace.ablate(edit, 3)
        for trial in range(3):
            rows, trials = torch.arange(2), torch.full((2,), trial)

            def change(output: Any, rows: Tensor = rows, trials: Tensor = trials) -> Any:
                tensor = case.tensor(output)
                return case.rewrapped(output, case.put_back(tensor, edit(case.by_hand(tensor, 2), rows, trials)))

            with torch.no_grad():
                output = raw(model, x, change)[1]
            expected = output.gather(1, torch.tensor(LABELS))
            torch.testing.assert_close(scores[:, trial], expected, rtol=1e-10, atol=1e-12)

    @every_case
    def test_second_derivatives(self, case: Case) -> None:
        """Along the activation, by differences of our own gradients."""
        model, x = case.made(), case.inputs()
        trace = tp.trace(model, x, layer="layer", target=LABELS)
        vector = trace.activations
        step, ends = 1e-5, []
        for sign in (1, -1):

            def change(output: Any, sign: int = sign) -> Any:
                tensor = case.tensor(output)
                ends.append(case.put_back(tensor, case.by_hand(tensor, 2) * (1 + sign * step)).detach())
                ends[-1].requires_grad_()
                return case.rewrapped(output, ends[-1])

            output = raw(model, x, change)[1]
            at = ends.pop()
            of_each = [
                torch.stack(
                    [
                        case.by_hand(torch.autograd.grad(output[n, label], at, retain_graph=True)[0], 2)[n]
                        for label in row
                    ]
                )
                for n, row in enumerate(LABELS)
            ]
            ends.insert(0, torch.stack(of_each))
        less, more = ends
        expected = (more - less) / (2 * step)
        torch.testing.assert_close(trace.hessian_times(vector), expected, rtol=1e-5, atol=1e-8)

    @every_case
    @pytest.mark.parametrize("method", ["hirescam", "layercam"])
    def test_methods(self, case: Case, method: str) -> None:
        """The replicas are for two axes: the grid is laid flat, which these methods do not mind."""
        model, x = case.made(), case.inputs()
        heatmap = tp.explain(model, x, method=method, layer="layer", target=LABELS)
        A = case.by_hand(case.tensor(raw(model, x)[0]).detach(), 2).flatten(2).unsqueeze(2).numpy()
        g = gradients(case, model, x, LABELS).flatten(3).unsqueeze(3).numpy()
        replica = getattr(replicas, method)
        for n in range(2):
            for k in range(3):
                expected = replica(A[n], g[n, k]).reshape(case.grid)
                np.testing.assert_allclose(heatmap.values[n, k].numpy(), expected, rtol=1e-9, atol=1e-13)

    @every_case
    def test_mirrored(self, case: Case) -> None:
        model, x = case.made(), case.inputs()
        x = x[..., : case.grid[-1] * case.patch[-1]]  # so that patches lie on patches
        smooth = tp.Smoothing(factors=(1.0,))
        found = tp.explain(model, x, layer="layer", target=LABELS, smooth=smooth).values
        plain, turned = (tp.explain(model, each, layer="layer", target=LABELS).values for each in (x, x.flip(-1)))
        torch.testing.assert_close(found, (plain + turned.flip(-1)) / 2, rtol=1e-10, atol=1e-13)

    @every_case
    def test_another_size_of_input(self, case: Case) -> None:
        model, x = case.made(), case.inputs()
        trace = tp.trace(model, x, layer="layer", target=LABELS)
        larger = torch.randn(2, 3, *(size + patch for size, patch in zip(case.size, case.patch, strict=True)))
        larger = larger.double()
        again = trace.again(larger)
        grown = Case(**{**case.__dict__, "size": tuple(larger.shape[2:])})
        assert again.at["layer"].layout.grid == grown.grid
        torch.testing.assert_close(again.gradients, gradients(grown, model, larger, LABELS), rtol=1e-10, atol=1e-13)

    @every_case
    def test_said_by_the_user(self, case: Case) -> None:
        """By its text, or as a Layout: what would be found anyway, also where it is only the kind."""
        model, x = case.made(), case.inputs()
        found = tp.trace(model, x, layer="layer", target=LABELS)
        layout = found.at["layer"].layout
        for said in (layout, str(layout), tp.Layout(case.kind, case.grid, case.prefix, case.suffix), case.kind):
            trace = tp.trace(model, x, layer="layer", layout=said, target=LABELS)
            assert trace.at["layer"].layout == layout
            assert torch.equal(trace.gradients, found.gradients)


class Turning(nn.Module):
    """(N, C, *grid) -> (N, *grid, C), and back."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x).permute(0, 2, 3, 1)


class Turned(nn.Module):
    """A network of (N, h, w, C) throughout, as Swin is, in whose first module only a convolution is to be seen."""

    def __init__(self, channels: int, patch: int = 8, norm: bool = True) -> None:
        super().__init__()
        self.embed = Turning(nn.Conv2d(3, channels, patch, patch))
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()
        self.lin = nn.Linear(channels, channels)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.embed(x)
        return self.head(torch.tanh(a + self.lin(self.norm(a))).mean((1, 2)))


class Upright(nn.Module):
    """The same numbers of channels and positions, but (N, C, h, w) everywhere outside of its block, as in ConvNeXt."""

    def __init__(self, channels: int, patch: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, channels, patch, patch)
        self.block = InTurns(channels)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.block(self.embed(x))).mean((2, 3)))


class InTurns(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.lin = nn.LayerNorm(channels), nn.Linear(channels, channels)

    def forward(self, a: Tensor) -> Tensor:
        return a + self.lin(self.norm(a.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Sequence(nn.Module):
    """torch's own transformer layers, with the samples second."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, channels, 16, 16)
        layer = nn.TransformerEncoderLayer(channels, 2, 12, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patch(x).flatten(2).permute(2, 0, 1)).mean(0))


class Signal(nn.Module):
    """A transformer over pieces of a signal (N, 2, L), as many pieces as channels if L is 4 times these."""

    def __init__(self, channels: int, prefix: int) -> None:
        super().__init__()
        self.piece = nn.Conv1d(2, channels, 4, 4)
        self.token = nn.Parameter(torch.randn(1, prefix, channels))
        self.block = nn.TransformerEncoderLayer(channels, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.token.expand(len(x), -1, -1), self.piece(x).mT], 1)
        return self.head(self.block(tokens).mean(1))


class Windows(nn.Module):
    """Attention inside windows of 2 x 2 positions, which are samples to it."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 8, 8)
        self.inside = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.patch(x)
        parts = a.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).permute(0, 2, 4, 3, 5, 1)  # (N, h/2, w/2, 2, 2, C)
        windows = self.inside(parts.flatten(3, 4).flatten(0, 2))  # (N windows, 4, C)
        return self.head(windows.unflatten(0, (len(x), -1)).mean((1, 2)))


class Flat(nn.Module):
    """Positions in one axis, turned after a module of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.patch, self.flat = nn.Conv2d(3, channels, 16, 16), nn.Flatten(2)
        self.norm, self.head = nn.LayerNorm(channels), nn.Linear(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.norm(self.flat(self.patch(x)).mT)).mean(1))


def kept(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """What a layer returned, by a hook of our own."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


class TestCoincidences:
    """Where one axis is as long as another. Each of these was read wrong once, without a word."""

    @pytest.mark.parametrize("channels", [24, 12])
    def test_a_convolution_inside_says_nothing_of_what_comes_out(self, channels: int) -> None:
        model, x = Turned(channels).eval(), torch.randn(2, 3, 64, 96)
        trace = tp.trace(model, x, layer="embed")
        assert trace.at["embed"].layout == tp.Layout("channels-last", (8, 12))
        assert torch.equal(trace.activations.squeeze(1), kept(model, "embed", x).permute(0, 3, 1, 2))

    def test_a_cube_next_to_a_norm_over_the_last_axis(self) -> None:
        """Only what certainly has its channels last is read so; of what may be either both are listed."""
        model, x = Turned(8).eval(), torch.randn(1, 3, 64, 64)
        assert str(tp.trace(model, x, layer="norm").at["norm"].layout) == "channels-last 8x8"
        assert str(tp.trace(model, x, layer="lin").at["lin"].layout) == "channels-last 8x8"
        with pytest.raises(
            NoSpatialLayer, match=r"fits 2 layouts: 'channels-first 8x8', 'channels-last 8x8'\. Choose one with"
        ):
            tp.trace(model, x, layer="embed")
        trace = tp.trace(model, x, layer="embed", layout="channels-last")
        assert torch.equal(trace.activations.squeeze(1), kept(model, "embed", x).permute(0, 3, 1, 2))
        upright = Upright(8).eval()
        with pytest.raises(NoSpatialLayer, match="'channels-first 8x8', 'channels-last 8x8'"):
            tp.trace(upright, x, layer="block")
        assert str(tp.trace(upright, x, layer="embed").at["embed"].layout) == "channels-first 8x8"
        first = tp.trace(upright, x, layer="block", layout="channels-first 8x8")
        assert torch.equal(first.activations.squeeze(1), kept(upright, "block", x))

    @pytest.mark.parametrize("size", [(64, 64), (64, 96)])
    def test_a_cube_in_a_network_of_convolutions_is_no_question(self, size: tuple[int, int]) -> None:
        block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        model = nn.Sequential(nn.Conv2d(3, 8, 8, 8), block, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        for layer in ("0", "1", "2"):
            x = torch.randn(2, 3, *size)
            assert torch.equal(tp.trace(model, x, layer=layer).activations.squeeze(1), kept(model, layer, x))

    @pytest.mark.parametrize("channels", [10, 16])
    @pytest.mark.parametrize("count", [1, 2, 16])
    def test_as_many_samples_as_tokens(self, channels: int, count: int) -> None:
        """(16, 16, C): which of the two are samples is seen where there is one."""
        model, x = Sequence(channels).eval(), torch.randn(count, 3, 64, 64)
        for layer in ("encoder.layers.0", "encoder.layers.0.norm1", "encoder"):
            trace = tp.trace(model, x, layer=layer)
            assert trace.at[layer].layout == tp.Layout("sequence-first", (4, 4))
            expected = kept(model, layer, x).permute(1, 2, 0).unflatten(2, (4, 4))
            torch.testing.assert_close(trace.activations.squeeze(1), expected)

    @pytest.mark.parametrize("count", [1, 2, 4, 16])
    def test_windows_in_the_axis_of_the_samples(self, count: int) -> None:
        """Also where the positions in a window are as many as the samples, and the windows a grid."""
        model, x = Windows().eval(), torch.randn(count, 3, 64, 64)
        with pytest.raises(NoSpatialLayer, match="it folds 16 parts of each picture, such as windows"):
            tp.trace(model, x, layer="inside")
        assert tp.trace(model, x).layer == "patch"

    def test_a_signal_with_as_many_channels_as_positions(self) -> None:
        x = torch.randn(2, 2, 64)
        for channels, prefix, expected in [(24, 0, "16"), (24, 1, "1+16"), (16, 1, "1+16"), (8, 1, "1+16")]:
            model = Signal(channels, prefix).eval()
            trace = tp.trace(model, x, layer="block")
            assert str(trace.at["block"].layout) == f"tokens {expected}"
            torch.testing.assert_close(trace.activations.squeeze(1), kept(model, "block", x)[:, prefix:].mT)
        with pytest.raises(NoSpatialLayer, match="2 layouts: 'tokens 16', 'channels-first 16'"):
            tp.trace(Signal(16, 0).eval(), x, layer="block")
        assert str(tp.trace(Signal(16, 0).eval(), x, layer="block.norm2").at["block.norm2"].layout) == "tokens 16"

    def test_a_signal_without_convolutions(self) -> None:
        """What a recurrent network says of (N, L, C): nothing shows which axis is time but the user."""

        class Recurrent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm, self.head = nn.LSTM(2, 12, batch_first=True), nn.Linear(12, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(torch.tanh(self.lstm(x.mT)[0]).mean(1))

        model, x = Recurrent().eval(), torch.randn(2, 2, 48)
        with pytest.raises(NoSpatialLayer, match=r"'tokens 48'.*'channels-first 12'"):
            tp.trace(model, x, layer="lstm")
        trace = tp.trace(model, x, layer="lstm", layout="tokens 48")
        assert trace.at["lstm"].layout.part == "0"
        assert trace.gradients.shape == (2, 1, 12, 48)

    @pytest.mark.parametrize(("channels", "layout"), [(10, "channel-tokens 4x4"), (20, "channel-tokens 4x4")])
    def test_channels_a_few_more_than_positions(self, channels: int, layout: str) -> None:
        """(N, 20, 16) might be 4 tokens and 16; but 20 channels and 16 positions are what the convolution had."""
        model, x = Flat(channels).eval(), torch.randn(2, 3, 64, 64)
        trace = tp.trace(model, x, layer="flat")
        assert str(trace.at["flat"].layout) == layout
        assert torch.equal(trace.activations.squeeze(1), kept(model, "patch", x))

    def test_a_square_of_channels_and_tokens(self) -> None:
        model, x = Flat(16).eval(), torch.randn(2, 3, 64, 64)
        with pytest.raises(NoSpatialLayer, match="'tokens 4x4', 'channel-tokens 4x4'"):
            tp.trace(model, x, layer="flat")
        trace = tp.trace(model, x, layer="flat", layout="channel-tokens")
        assert torch.equal(trace.activations.squeeze(1), kept(model, "patch", x))
        # After the norm, and of a transformer's block, it is no question.
        assert str(tp.trace(model, x, layer="norm").at["norm"].layout) == "tokens 4x4"
        timm = pytest.importorskip("timm")
        vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=16, num_heads=2, **NO_CLASS)
        assert str(tp.trace(vit, x, layer="blocks.0").at["blocks.0"].layout) == "tokens 4x4"

    def test_196_of_both(self) -> None:
        timm = pytest.importorskip("timm")
        vit = timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=196, num_heads=2, **NO_CLASS).eval()
        x = torch.randn(1, 3, 224, 224)
        trace = tp.trace(vit, x, layer="blocks.0")
        expected = kept(vit, "blocks.0", x).mT.unflatten(2, (14, 14))
        torch.testing.assert_close(trace.activations.squeeze(1), expected)

    def test_one_position_is_no_grid(self) -> None:
        """(N, 1, 256) is one token, whatever 256 may be the square of."""
        model = nn.Sequential(nn.Conv2d(3, 256, 32, 32), nn.Flatten(2), Swap(), nn.Tanh(), nn.Flatten(1))
        with pytest.raises(NoSpatialLayer, match="no grid of more than one position"):
            tp.trace(model, torch.randn(2, 3, 32, 32), layer="3")


NO_CLASS: dict[str, Any] = {"class_token": False, "global_pool": "avg", "num_classes": 4}


class Swap(nn.Module):
    def forward(self, a: Tensor) -> Tensor:
        return a.mT


class TestSaidByTheUser:
    def test_what_is_said_decides(self) -> None:
        """Of 30 tokens it may be said that 6 come first, or none."""
        model, x = Case("tokens", (24, 16), (4, 4), 6).made(), torch.randn(2, 3, 24, 16).double()
        assert str(tp.trace(model, x, layer="layer").at["layer"].layout) == "tokens 6+6x4"
        trace = tp.trace(model, x, layer="layer", layout="tokens 6x5")
        tokens = kept(model, "layer", x)
        assert torch.equal(trace.activations.squeeze(1), tokens.mT.unflatten(2, (6, 5)))
        trace = tp.trace(model, x, layer="layer", layout=tp.Layout("tokens", (5, 5), 3, 2))
        assert torch.equal(trace.activations.squeeze(1), tokens[:, 3:28].mT.unflatten(2, (5, 5)))
        heatmap = tp.explain(model, x, layer="layer", layout="tokens 6x5")
        assert heatmap.provenance.layout == "tokens 6x5"

    @pytest.mark.parametrize(
        "layout",
        [
            "tokens 7x4",
            "tokens 2+6x4",
            "channels-first",
            "channel-tokens 6x4",
            "sequence-first 6x4",
            "channels-last 6x4",
        ],
    )
    def test_what_does_not_fit(self, layout: str) -> None:
        model, x = Case("tokens", (24, 16), (4, 4), 1).made(), torch.randn(2, 3, 24, 16).double()
        with pytest.raises(NoSpatialLayer, match=rf"\(N, 25, 6\), which is not {layout.replace('+', '.')}") as caught:
            tp.trace(model, x, layer="layer", layout=layout)
        assert "do not fit" in str(caught.value)

    @pytest.mark.parametrize("layout", ["", "tokens 4", "token 4x4", "tokens 1+", "tokens 4x4 5", 7, "tokens -1+4x4"])
    def test_what_is_no_layout(self, layout: Any) -> None:
        model, x = Case("tokens", (24, 16), (4, 4), 1).made(), torch.randn(2, 3, 24, 16).double()
        expected = NoSpatialLayer if layout == "tokens 4" else InputError  # which one is, of a signal
        with pytest.raises(expected):
            tp.trace(model, x, layer="layer", layout=layout)

    def test_without_a_layer(self) -> None:
        model, x = Case("tokens", (24, 16), (4, 4), 1).made(), torch.randn(2, 3, 24, 16).double()
        with pytest.raises(InputError, match="layer= is missing"):
            tp.explain(model, x, layout="tokens 1+6x4")

    def test_of_several_layers_it_is_for_all(self) -> None:
        model, x = Turned(8, norm=False).eval(), torch.randn(1, 3, 64, 64)
        trace = tp.trace(model, x, layer=["embed", "lin"], layout="channels-last")
        for layer in ("embed", "lin"):
            expected = kept(model, layer, x).permute(0, 3, 1, 2)
            assert torch.equal(trace.at[layer].activation, expected)


class Two(nn.Module):
    """A block that returns two tensors with a grid, or one of them in a container of its own kind."""

    def __init__(self, returned: Callable[[Tensor, Tensor], Any], taken: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 6, 4, 4), nn.Conv2d(3, 5, 8, 8)
        self.both = Applied(returned)
        self.taken, self.head = taken, nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.taken(self.both(self.one(x), self.other(x)))).mean((2, 3)))


class Applied(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class TestContainers:
    @pytest.mark.parametrize(
        ("returned", "taken", "parts"),
        [
            (lambda a, b: (a, b), lambda both: both[0], ("0", "1")),
            (lambda a, b: {"fine": a, "more": [b]}, lambda both: both["fine"], ("fine", "more.0")),
        ],
    )
    def test_several_are_named(self, returned: Any, taken: Any, parts: tuple[str, str]) -> None:
        model, x = Two(returned, taken).eval(), torch.randn(2, 3, 32, 48)
        with pytest.raises(NoSpatialLayer) as caught:
            tp.trace(model, x, layer="both")
        for text in ("'channels-first 8x12' (of its part '", "'channels-first 4x6'", "a layer that returns one tensor"):
            assert text in str(caught.value)
        assert all(repr(part) in str(caught.value) for part in parts)
        # The layout says which, where it fits one alone.
        trace = tp.trace(model, x, layer="both", layout="channels-first 8x12", target=0)
        assert trace.at["both"].layout.part == parts[0]
        assert torch.equal(trace.activations.squeeze(1), kept(model, "one", x))
        changed = trace.ablate(lambda activation, rows, trials: activation * 2, 1)
        with torch.no_grad():
            expected = model.head(torch.tanh(2 * model.one(x)).mean((2, 3)))[:, :1]
        torch.testing.assert_close(changed[:, 0], expected)

    def test_of_transformers(self) -> None:
        transformers = pytest.importorskip("transformers")
        output = transformers.modeling_outputs.BaseModelOutput

        def returned(a: Tensor, b: Tensor) -> Any:
            return output(last_hidden_state=a)

        model, x = Two(returned, lambda both: both.last_hidden_state).eval(), torch.randn(2, 3, 32, 48)
        trace = tp.trace(model, x, layer="both", target=1)
        assert trace.at["both"].layout == tp.Layout("channels-first", (8, 12), part="last_hidden_state")
        torch.testing.assert_close(trace.gradients, tp.trace(model, x, layer="one", target=1).gradients)
        scores = trace.ablate(lambda activation, rows, trials: activation * 0, 1)
        torch.testing.assert_close(scores[:, 0, 0], (model.head.bias[1]).detach().expand(2))

    def test_nothing_to_look_at(self) -> None:
        model = Two(lambda a, b: (a.flatten(), "more"), lambda both: both[0].view(-1, 6, 8, 12)).eval()
        x = torch.randn(2, 3, 32, 48)
        with pytest.raises(NoSpatialLayer, match=r"tuple of \(N\), str"):
            tp.trace(model, x, layer="both")
        indices = Two(lambda a, b: (a, a.argmax(1, keepdim=True))[1], lambda both: both.float().expand(-1, 6, -1, -1))
        with pytest.raises(NoSpatialLayer, match=r"of torch.int64; a heatmap needs floating-point"):
            tp.trace(indices.eval(), x, layer="both")


GRIDS = {
    "0": lambda a: a,
    "1": lambda a: a.permute(0, 3, 1, 2),
    "3": lambda a: a.mT.unflatten(2, (4, 6)),
    "4": lambda a: a.mT.unflatten(2, (4, 6)),
    "5": lambda a: a.unflatten(2, (4, 6)),
    "6": lambda a: a.permute(1, 2, 0).unflatten(2, (4, 6)),
}


class TestSeveralLayers:
    """Of different layouts, in one trace and in one map."""

    def network(self) -> nn.Module:
        model = nn.Sequential(
            nn.Conv2d(3, 6, 4, 4),
            Applied(lambda a: torch.tanh(a).permute(0, 2, 3, 1)),
            nn.LayerNorm(6),
            Applied(lambda a: torch.sin(a).flatten(1, 2)),
            nn.Linear(6, 6),
            Applied(lambda a: a.mT),
            Applied(lambda a: torch.tanh(a).permute(2, 0, 1)),
            Applied(lambda a: torch.tanh(a).mean(0)),
            nn.Linear(6, 4),
        )
        return model.double().eval()

    def test_in_one_pass(self) -> None:
        model, x = self.network(), torch.randn(2, 3, 16, 24).double()
        trace = tp.trace(model, x, layer=list(GRIDS), target=[[0, 2], [0, 2]])
        seen: dict[str, Tensor] = {}
        handles = [
            model.get_submodule(name).register_forward_hook(lambda m, a, output, name=name: seen.update({name: output}))
            for name in GRIDS
        ]
        output = model(x)
        for handle in handles:
            handle.remove()
        for k, label in enumerate((0, 2)):
            found = torch.autograd.grad(output[:, label].sum(), list(seen.values()), retain_graph=True)
            for (name, turn), gradient in zip(GRIDS.items(), found, strict=True):
                torch.testing.assert_close(trace.gradients_at[name][:, k], turn(gradient), rtol=1e-10, atol=1e-14)
                torch.testing.assert_close(trace.at[name].activation, turn(seen[name]).detach())

    def test_fused(self) -> None:
        model, x = self.network(), torch.randn(2, 3, 16, 24).double()
        maps = [tp.explain(model, x, layer=name, target=1).positive().unit().values for name in GRIDS]
        for fuse, together in (("max", torch.stack(maps).amax(0)), ("mean", torch.stack(maps).mean(0))):
            found = tp.explain(model, x, layer=list(GRIDS), fuse=fuse, target=1)
            torch.testing.assert_close(found.values, together)
            assert "channels-last 4x6" in found.provenance.layout
            assert "sequence-first 4x6" in found.provenance.layout


class TestDetectors:
    def test_a_grid_may_be_larger_than_the_picture_that_is_given(self) -> None:
        """As the detector scales it first: of 32 x 48 pixels its finest grid is 48 x 80."""
        detection = pytest.importorskip("torchvision").models.detection
        model = detection.fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, min_size=96).eval()
        target = tp.targets.Neuron("backbone.body.4", 3)
        for layer in ("backbone.body.0", "backbone.body.2"):
            trace = tp.trace(model, torch.rand(1, 3, 32, 48), layer=layer, target=target)
            grid = {"backbone.body.0": (48, 80), "backbone.body.2": (24, 40)}[layer]
            assert trace.at[layer].layout == tp.Layout("channels-first", grid)
            assert float(trace.gradients.abs().max()) > 0


class Undeclared(nn.Module):
    """A transformer whose class token comes `last`, or not, and which nobody has told of."""

    def __init__(self, *, last: bool, norm_first: bool = True, place: str = "beside") -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))  # as torchvision's is called, which this is not
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)
        self.last, self.place = last, place
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        grid = self.patch(x.float()).flatten(2).mT
        own = self.class_token.expand(len(x), -1, -1)
        parts = [grid, own] if self.last else [own, grid]
        if self.place == "between":
            parts = [grid[:, :8], own, grid[:, 8:]]
        tokens = self.blocks(torch.cat(parts, 1) + self.positions)
        return self.head(tokens[:, -1 if self.last else 0])


class TestUndeclaredTokens:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("norm_first", [True, False])
    @pytest.mark.parametrize("last", [True, False])
    def test_where_they_lie_is_seen(self, last: bool, norm_first: bool, seed: int) -> None:
        """Also where the first layer with tokens comes after attention, and whatever picture comes first."""
        torch.manual_seed(seed)
        model = Undeclared(last=last, norm_first=norm_first).eval()
        first = [torch.full((1, 3, 32, 32), 0.5), torch.rand(1, 3, 32, 32) > 0.5, torch.randn(2, 3, 32, 32)][seed % 3]
        for x in (first, torch.randn(1, 3, 32, 32)):
            found = tp.trace(model, x, layer="blocks.layers.0", target=1).at["blocks.layers.0"].layout
            assert str(found) == ("tokens 4x4+1" if last else "tokens 1+4x4")

    def test_one_between_is_a_question(self) -> None:
        torch.manual_seed(0)
        model = Undeclared(last=False, place="between").eval()
        with pytest.raises(NoSpatialLayer, match=r"'tokens 1\+4x4', 'tokens 4x4\+1'"):
            tp.trace(model, torch.randn(1, 3, 32, 32), layer="blocks.layers.0.norm1", target=1)

    def test_one_sample_at_a_time_and_no_more(self) -> None:
        model = Undeclared(last=True).eval()
        tp.trace(model, torch.randn(1, 3, 32, 32), target=1)
        assert {len(each) for each in model.seen} == {1}
