"""Inputs that a model does not take: the error says what was got, what the first layer takes, and what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import InputError


class Net(nn.Module):
    """A convolutional classifier. It reads positions as (-2, -1), so it also runs on a picture without batch axis."""

    def __init__(self, channels: int = 3, norm: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3)
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.last = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.norm(self.stem(x))).mean((-2, -1)))


def bytes_of(*shape: int) -> Tensor:
    return (torch.rand(*shape) * 255).to(torch.uint8)


CASES: list[tuple[str, Callable[[], nn.Module], Callable[[], Tensor]]] = [
    ("x.unsqueeze(0)", Net, lambda: torch.rand(3, 14, 12)),
    ("x.unsqueeze(0)", lambda: Net(norm=False), lambda: torch.rand(3, 14, 12)),
    ("x.unsqueeze(0)", lambda: Net(1, norm=False), lambda: torch.rand(1, 14, 12)),
    ("x.unsqueeze(1)", lambda: Net(1, norm=False), lambda: torch.rand(5, 14, 12)),
    ("x[None, None]", lambda: Net(1), lambda: torch.rand(14, 12)),
    ("x[None, None].expand(-1, 3, -1, -1)", Net, lambda: torch.rand(14, 12)),
    ("x.float() / 255", Net, lambda: bytes_of(2, 3, 14, 12)),
    ("x.to(torch.float64) / 255", lambda: Net().double(), lambda: bytes_of(2, 3, 14, 12)),
    ("x.permute(0, 3, 1, 2)", Net, lambda: torch.rand(2, 14, 12, 3)),
    ("x.permute(0, 3, 1, 2).float() / 255", Net, lambda: bytes_of(2, 14, 12, 3)),
    ("x.permute(2, 0, 1).unsqueeze(0).float() / 255", Net, lambda: bytes_of(14, 12, 3)),
    ("x.permute(0, 3, 1, 2)[:, :3]", Net, lambda: torch.rand(1, 14, 12, 4)),
    ("x.to(torch.float32)", Net, lambda: torch.rand(1, 3, 14, 12).double()),
    ("x.to(torch.float32)", Net, lambda: torch.rand(1, 3, 14, 12).half()),
    ("x.to(torch.float32)", Net, lambda: torch.rand(1, 3, 14, 12) > 0.5),
    ("x.to(torch.float64)", lambda: Net().double(), lambda: torch.rand(1, 3, 14, 12)),
    ("x.expand(-1, 3, -1, -1)", Net, lambda: torch.rand(2, 1, 14, 12)),
    ("x[:, :3]", Net, lambda: torch.rand(2, 4, 14, 12)),
    ("x.mean(1, keepdim=True)", lambda: Net(1), lambda: torch.rand(2, 3, 14, 12)),
    ("x.abs()", Net, lambda: torch.rand(2, 3, 14, 12).to(torch.complex64)),
    ("x.to(torch.float32)", Net, lambda: bytes_of(2, 3, 14, 12).long()),
    ("x.flatten(0, 1)", Net, lambda: torch.rand(1, 2, 3, 14, 12)),
    ("x.flatten(0, 1)", Net, lambda: torch.rand(2, 1, 3, 14, 12)),
]


class Normalising(nn.Module):
    """Takes the mean colour of the training pictures off, which is broadcast to an input without batch axis, too."""

    def __init__(self, moved: bool = False) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1,) if moved else (3, 1, 1), 0.5))
        self.stem, self.head, self.moved = nn.Conv2d(3, 8, 3), nn.Linear(8, 5), moved

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2) if self.moved else x
        return self.head(self.stem(x.float() - self.mean).mean((2, 3)))


class Functional(nn.Module):
    """Its weights are its own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.act, self.head = nn.Parameter(torch.rand(8, 3, 3, 3)), nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(nn.functional.conv2d(x, self.weight)).mean((2, 3)))


INDIRECT: list[tuple[str, Callable[[], nn.Module], Callable[[], Tensor], str]] = [
    ("x.unsqueeze(0)", Normalising, lambda: torch.rand(3, 14, 12), "stem"),
    ("x.permute(2, 0, 1).unsqueeze(0).float() / 255", Normalising, lambda: bytes_of(14, 12, 3), "stem"),
    ("x[None, None].expand(-1, 3, -1, -1)", Normalising, lambda: torch.rand(14, 12), "stem"),
    ("x[:, :3]", Normalising, lambda: torch.rand(2, 4, 14, 12), "stem"),
    ("x.permute(0, 2, 3, 1)", lambda: Normalising(moved=True), lambda: torch.rand(2, 3, 14, 12), "stem"),
    ("x.float() / 255", Functional, lambda: bytes_of(2, 3, 14, 12), "act"),
    ("x.to(torch.float32)", Functional, lambda: torch.rand(2, 3, 14, 12).double(), "act"),
    (
        "x.to(torch.float32)",
        lambda: nn.Sequential(nn.BatchNorm2d(3), Net()),
        lambda: torch.rand(2, 3, 14, 12).half(),
        "1.last",
    ),
]


class TestWhatToWrite:
    @pytest.mark.parametrize("layer", ["last", None])
    @pytest.mark.parametrize(("code", "make_model", "make_input"), CASES, ids=range(len(CASES)))
    def test_runs_where_the_input_did_not(
        self,
        code: str,
        make_model: Callable[[], nn.Module],
        make_input: Callable[[], Tensor],
        layer: str | None,
    ) -> None:
        """The written expression, run, gives an input that the model takes."""
        model, x = make_model().eval(), make_input()
        with pytest.raises(InputError) as caught:
            tp.explain(model, x, layer=layer)
        text = str(caught.value)
        assert text.endswith(f"Next: for this input x, write {code}")
        assert f"got {tuple(x.shape)} of {x.dtype} on cpu; the first layer with weights, 'stem' (Conv2d), takes" in text
        repaired = eval(code, {"torch": torch, "x": x})
        assert tp.explain(model, repaired, layer=layer).values.shape[0] == len(repaired)

    @pytest.mark.parametrize(("code", "make_model", "make_input", "layer"), INDIRECT)
    def test_where_the_first_layer_is_not_what_fails(
        self, code: str, make_model: Callable[[], nn.Module], make_input: Callable[[], Tensor], layer: str
    ) -> None:
        """The numbers were broadcast, moved or converted before it, or it has no module."""
        model, x = make_model().eval(), make_input()
        with pytest.raises(InputError) as caught:
            tp.explain(model, x, layer=layer)
        assert str(caught.value).endswith(f"Next: for this input x, write {code}")
        assert tp.activations(model, eval(code, {"torch": torch, "x": x}), layer)

    @pytest.mark.parametrize(("channels", "takes"), [(2, 1), (4, 1), (1, 100), (7, 3)])
    def test_channels_that_nothing_makes_right(self, channels: int, takes: int) -> None:
        words = f"it has {channels} channels?, not {takes}. Next: give inputs with {takes} on axis 1, as in training"
        with pytest.raises(InputError, match=words):
            tp.explain(Net(takes).eval(), torch.rand(2, channels, 14, 12))

    @pytest.mark.parametrize(
        "function",
        [
            lambda model, x: tp.trace(model, x),
            lambda model, x: tp.compare(model, x, methods=["gradcam", "scorecam"]),
            lambda model, x: tp.activations(model, x, "last"),
            lambda model, x: tp.statistics(model, [x]),
            lambda model, x: tp.layers(model, x),
            lambda model, x: tp.plan(model, x),
            lambda model, x: tp.gradient_flow(model, x, 0),
            lambda model, x: tp.evaluate(
                model, x, tp.explain(model, torch.rand(1, 3, 14, 12)), metrics={"deletion": {"steps": 2}}
            ),
        ],
        ids=["trace", "compare", "activations", "statistics", "layers", "plan", "gradient_flow", "evaluate"],
    )
    def test_in_every_function_that_runs_a_model(self, function: Callable[[nn.Module, Any], Any]) -> None:
        model = Net().eval()
        with pytest.raises(InputError, match=r"write x.unsqueeze\(0\)"):
            function(model, torch.rand(3, 14, 12))
        with pytest.raises(InputError, match=r"has 1 channel, not 3") as caught:
            function(model, torch.rand(1, 1, 14, 12))
        assert isinstance(caught.value.__cause__, RuntimeError)  # torch's own words are behind it
        with pytest.raises(InputError, match=r"Next: torch.from_numpy\(a\).float\(\)"):
            function(model, np.zeros((1, 3, 14, 12)))

    def test_a_list_of_pictures_without_batch_axis(self) -> None:
        with pytest.raises(InputError, match=r"torch.stack\(x\)"):
            tp.explain(Net().eval(), [torch.rand(3, 14, 12)] * 2)

    @pytest.mark.parametrize(
        ("array", "code"),
        [
            (np.zeros((2, 3, 14, 12), np.float32), "torch.from_numpy(a),"),
            (np.zeros((2, 3, 14, 12)), "torch.from_numpy(a).float(),"),
            (np.zeros((14, 12, 3), np.uint8), "torch.from_numpy(a).permute(2, 0, 1).unsqueeze(0).float() / 255,"),
            (np.zeros((2, 14, 12, 3), np.uint8), "torch.from_numpy(a).permute(0, 3, 1, 2).float() / 255,"),
            (np.zeros((3, 14, 12), np.float32), "torch.from_numpy(a).unsqueeze(0),"),
        ],
    )
    def test_an_array(self, array: Any, code: str) -> None:
        model = Net().eval()
        with pytest.raises(InputError) as caught:
            tp.explain(model, array)
        assert f"Next: {code} normalised" in str(caught.value)
        tp.explain(model, eval(code.rstrip(","), {"torch": torch, "a": array}))
        with pytest.raises(InputError, match="argument 'x': inputs is a ndarray"):
            tp.explain(model, {"x": array})

    def test_the_user_s_own_shape_is_named_where_the_dry_run_takes_one_sample(self) -> None:
        with pytest.raises(InputError, match=r"got \(4, 1, 14, 12\)"):
            tp.explain(Net().eval(), torch.rand(4, 1, 14, 12))


class TestOtherFirstLayers:
    def test_a_linear_layer(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Linear(8, 5)).eval()
        with pytest.raises(InputError, match=r"'1' \(Linear\), takes \(..., 144\).*was called with \(2, 168\)"):
            tp.activations(model, torch.rand(2, 1, 14, 12), "2")
        with pytest.raises(InputError, match=r"write x.to\(torch.float32\)"):
            tp.activations(model, torch.rand(2, 1, 12, 12).double(), "2")

    def test_a_norm(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(3), Net()).eval()
        with pytest.raises(InputError, match=r"'0' \(BatchNorm2d\), takes \(N, 3, H, W\).*x.expand\(-1, 3, -1, -1\)"):
            tp.explain(model, torch.rand(2, 1, 14, 12), layer="1.last")
        with pytest.raises(InputError, match=r"write x.permute\(0, 3, 1, 2\)"):
            tp.explain(model, torch.rand(2, 14, 12, 3), layer="1.last")

    def test_a_step_that_takes_no_integers(self) -> None:
        """The failure comes before the first layer, and its words name the type."""

        class Normalising(Net):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x - x.mean((2, 3), keepdim=True))

        with pytest.raises(InputError, match=r"write x.float\(\) / 255"):
            tp.explain(Normalising().eval(), bytes_of(1, 3, 14, 12), layer="last")

    def test_an_embedding(self) -> None:
        model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)).eval()
        with pytest.raises(InputError, match=r"'0' \(Embedding\), takes indices.* write x.long\(\)"):
            tp.activations(model, torch.zeros(2, 5), "1")
        assert tp.activations(model, torch.zeros(2, 5, dtype=torch.long), "1")["1"].shape == (2, 5, 2)

    def test_a_step_before_it(self) -> None:
        """The first layer's input is made of the picture."""

        class Normalising(Net):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward((x - x.new_full((), 0.5)) * 2)

        with pytest.raises(InputError, match=r"write x.permute\(0, 3, 1, 2\)"):
            tp.explain(Normalising().eval(), torch.rand(1, 14, 12, 3))

    def test_signals_and_volumes(self) -> None:
        one = nn.Sequential(nn.Conv1d(1, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
        with pytest.raises(InputError, match=r"takes \(N, 1, L\).*write x.unsqueeze\(1\)"):
            tp.explain(one, torch.rand(6, 50))
        three = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
        with pytest.raises(InputError, match=r"takes \(N, 1, D, H, W\).*write x.unsqueeze\(0\)"):
            tp.explain(three, torch.rand(1, 8, 8, 8))


class TestTheModelsOwn:
    """What is no mistake of the inputs stays as it is: the model's own exception, and the model's own way of input."""

    def test_a_later_layer_that_does_not_fit(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(4, 8, 3), nn.Flatten()).eval()
        with pytest.raises(RuntimeError, match="expected input") as caught:
            tp.explain(model, torch.rand(1, 3, 8, 8))
        assert "Sequential was given torch.float32 of shape (1, 3, 8, 8)" in str(caught.value.__notes__)

    def test_an_exception_before_the_first_layer(self) -> None:
        class Failing(Net):
            def forward(self, x: Tensor) -> Tensor:
                raise ValueError("its own")

        with pytest.raises(ValueError, match="its own") as caught:
            tp.explain(Failing().eval(), torch.rand(1, 3, 8, 8))
        assert not isinstance(caught.value, InputError)

    def test_channels_that_the_model_makes_itself(self) -> None:
        class Doubling(Net):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(torch.cat([x, x], 1))

        with pytest.raises(RuntimeError, match="to have 3 channels"):
            tp.explain(Doubling().eval(), torch.rand(1, 3, 8, 8))

    def test_integers_that_the_model_takes(self) -> None:
        class Scaling(Net):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x / 255)

        torch.manual_seed(0)
        model, x = Scaling().eval(), bytes_of(2, 3, 14, 12)
        got = tp.explain(model, x, layer="last", target=1).values
        torch.testing.assert_close(got, tp.explain(model, x.float(), layer="last", target=1).values)

    def test_one_sample_after_the_other(self) -> None:
        class Looping(Net):
            def forward(self, x: Tensor) -> Tensor:
                return torch.stack([super(Looping, self).forward(each) for each in x])

        model = Looping(norm=False).eval()
        assert tp.activations(model, torch.rand(2, 3, 14, 12), "head")["head"].shape == (5,)

    def test_a_picture_without_batch_axis_where_nothing_needs_samples(self) -> None:
        outputs = tp.activations(Net(norm=False).eval(), torch.rand(3, 14, 12), "last")
        assert outputs["last"].shape == (8, 10, 8)

    def test_an_input_that_requires_gradients(self) -> None:
        model, x = Net().eval(), torch.rand(1, 3, 14, 12)
        got = tp.explain(model, x.clone().requires_grad_(), target=1).values
        torch.testing.assert_close(got, tp.explain(model, x, target=1).values)

    def test_the_model_is_left_as_found(self) -> None:
        model = Net().train()
        before = {name: each.clone() for name, each in model.state_dict().items()}
        with pytest.raises(InputError):
            tp.explain(model, torch.rand(3, 14, 12))
        assert model.training
        assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
        assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())


class Pair(nn.Module):
    """Takes two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = Net(), Net()

    def forward(self, image: Tensor, depth: Tensor) -> Tensor:
        return self.one(image) + self.two(depth)


class TestArguments:
    @pytest.mark.parametrize(
        "inputs",
        [(torch.rand(1, 3, 14, 12), torch.rand(1, 3, 14, 12)), torch.rand(1, 3, 14, 12), [torch.rand(1, 3, 14, 12)]],
    )
    def test_two_inputs_as_a_pair_or_one_of_them(self, inputs: Any) -> None:
        with pytest.raises(InputError, match=r"Next: tp.Arguments\(\(image, depth\)\)"):
            tp.explain(Pair().eval(), inputs)

    def test_a_misspelt_one(self) -> None:
        x = torch.rand(1, 3, 14, 12)
        with pytest.raises(InputError, match=r"Pair.forward\(image, depth\).*closest: 'depth'"):
            tp.explain(Pair().eval(), {"image": x, "deptj": x})
