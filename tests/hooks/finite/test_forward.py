"""check_finite: what it names in the forward pass, and what it lets through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchpeek as tp
from torchpeek.errors import InputError, InputNotFinite, LayerNotFinite, LayerNotFound, Notice

X = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Applied(nn.Module):
    """A linear layer and then a function, in one module."""

    def __init__(self, function: Callable[[Tensor], Any], layer: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function = function
        self.fc = layer or nn.Linear(3, 3).double()

    def forward(self, x: Tensor) -> Any:
        return self.function(self.fc(x))


class Between(nn.Module):
    """Applies a function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.after, self.function = nn.Linear(3, 3).double(), nn.Linear(3, 3).double(), function

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.function(self.before(x)))


class DividesByZero(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x / 0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def raised(model: nn.Module, x: Any = X, **options: Any) -> LayerNotFinite:
    with pytest.raises(LayerNotFinite) as caught, tp.check_finite(model, **options):
        model(x)
    return caught.value


def written_in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] /= 0 * y[:, 0]
    return y


def divided_view(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0].div_(0)
    return y


class TestTheMakerIsNamed:
    @pytest.mark.parametrize(
        ("function", "operation"),
        [
            (torch.log, "torch.log"),
            (lambda x: (-x.abs()).log(), "torch.Tensor.log"),
            (lambda x: x / (x * 0), "div"),
            (lambda x: x.sub_(x).reciprocal_(), "torch.Tensor.reciprocal_"),
            (lambda x: (x * 1e4).exp(), "torch.Tensor.exp"),
            (lambda x: F.normalize(x * 0, eps=0.0), "torch.nn.functional.normalize"),
            (lambda x: x.half() * 1e6, "mul"),
            (lambda x: torch.log(x) * 0 + 1, "torch.log"),  # not what made NaN of it
            (lambda x: torch.cat([x, x * 0]).rsqrt(), "torch.Tensor.rsqrt"),
            (written_in_place, "div_"),
            (lambda x: torch.complex(x, x) / 0, "div"),
            (lambda x: torch.view_as_complex(torch.stack((x * 0, x), -1)).log() / 0, "div"),
            (DividesByZero.apply, "div"),
            (lambda x: DividesByZero.apply(x) * 2, "div"),
            (lambda x: {"a": x, "b": (x * torch.tensor(0.0)).reciprocal()}, "torch.Tensor.reciprocal"),
            (lambda x: (x.argmax(1), [torch.acosh(x * 0)]), "torch.acosh"),
        ],
    )
    def test_operation(self, function: Callable[[Tensor], Any], operation: str) -> None:
        for context in (torch.enable_grad(), torch.no_grad(), torch.inference_mode()):
            with context:
                error = raised(nn.Sequential(nn.Linear(3, 3).double(), Applied(function)))
            assert (error.layer, error.call, error.pass_number, error.direction) == ("1", 0, 0, "forward")
            assert operation in error.operation
            assert error.operation in str(error)

    def test_a_view_that_is_written_into(self) -> None:
        model = nn.Sequential(Applied(divided_view))
        assert raised(model).operation == "torch.Tensor.div_"
        with torch.inference_mode():  # there a tensor does not tell that it was written into
            error = raised(model)
        assert (error.layer, error.operation) == ("0", "")

    def test_a_function_between_two_layers_belongs_to_the_layer_around_it(self) -> None:
        error = raised(nn.Sequential(Between(lambda x: (-x.abs()).sqrt())))
        assert (error.layer, error.operation) == ("0", "torch.Tensor.sqrt")

    def test_what_came_in(self) -> None:
        x = torch.tensor([[1.0, -2.0, 4.0]])
        text = str(raised(nn.Sequential(Applied(lambda x: torch.log(x / 2), nn.Identity())), x))
        assert "torch.log got (1, 3) float32 in [-1, 2]" in text
        assert "the layer got (1, 3) float32 in [-2, 4]" in text
        assert "1 NaN of 3 elements, the others in [-0.6931, 0.6931]" in text

    def test_the_call_and_the_pass(self) -> None:
        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.act = Applied(torch.log, nn.Identity())

            def forward(self, x: Tensor) -> Tensor:
                return self.act(-self.act(x))

        model = Twice()
        with pytest.raises(LayerNotFinite) as caught, tp.check_finite(model):
            model.act(torch.tensor([2.0]))
            model(torch.tensor([2.0]).exp().reciprocal())  # log is -2, so the second call is finite
            model(torch.tensor([2.0]))
        assert (caught.value.layer, caught.value.call, caught.value.pass_number) == ("act", 1, 2)

    def test_stock_layers(self) -> None:
        weights = nn.Linear(3, 3)
        nn.init.constant_(weights.weight, 3e38)
        error = raised(nn.Sequential(nn.Identity(), weights), torch.ones(1, 3))
        assert (error.layer, error.operation) == ("1", "torch.nn.functional.linear")
        assert "weight (3, 3) float32 in [3e+38, 3e+38]" in str(error)

    def test_a_half_that_overflows_under_autocast(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        with torch.no_grad():
            model[1].weight.fill_(6e4)
            model[1].bias.fill_(0)
        with torch.autocast("cpu", dtype=torch.float16):
            assert raised(model, torch.full((1, 3), 100.0)).layer == "1"

    def test_replicas(self) -> None:
        model = nn.DataParallel(nn.Sequential(nn.Linear(3, 3).double(), Applied(torch.log)))
        assert raised(model).layer == "module.1"

    def test_other_threads(self) -> None:
        """Operations are seen in the thread of the block alone, layers in all."""
        from concurrent.futures import ThreadPoolExecutor

        model = nn.Sequential(nn.Linear(3, 3).double(), Between(torch.log))
        for around in (torch.enable_grad(), torch.no_grad()):
            with (
                around,
                pytest.raises(LayerNotFinite) as caught,
                tp.check_finite(model),
                ThreadPoolExecutor(1) as pool,
            ):
                pool.submit(model, X).result()
            assert (caught.value.layer, caught.value.operation) == ("1", "")


class TestToldApart:
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_the_input(self, bad: float) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        x = torch.zeros(2, 3)
        x[0, 1] = bad
        with (
            pytest.raises(InputNotFinite, match="the input of the model is not finite") as caught,
            tp.check_finite(model),
        ):
            model(x)
        assert caught.value.layer == "0"

    def test_an_input_made_before_the_model_was_called(self) -> None:
        model, source = nn.Linear(3, 3), torch.zeros(1, 3, requires_grad=True)
        with (
            pytest.raises(InputNotFinite, match=r"torch\.log made it before the model was called"),
            tp.check_finite(model),
        ):
            model(torch.log(source))

    def test_an_input_that_does_not_matter(self) -> None:
        class Cleaned(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.nan_to_num(x)

        with tp.check_finite(Cleaned()):
            assert Cleaned()(torch.tensor([torch.nan])).item() == 0

    @pytest.mark.parametrize("name", ["weight", "bias"])
    def test_a_parameter(self, name: str) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        getattr(model[1], name).data.view(-1)[0] = torch.nan
        error = raised(model, torch.ones(1, 3))
        assert error.layer == "1"
        assert "the weights of layer '1' (Linear) are not finite" in str(error)
        assert f"parameter '1.{name}'" in str(error)

    def test_a_buffer(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(3)).eval()
        model[0].running_mean[2] = torch.inf
        assert "buffer '0.running_mean'" in str(raised(model, torch.ones(2, 3)))

    def test_a_weight_that_breaks_while_it_trains(self) -> None:
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e30)
        with pytest.raises(LayerNotFinite), tp.check_finite(model):
            for _ in range(5):
                model(torch.ones(1, 3)).square().sum().backward()
                optimizer.step()


class TestInfinityOnPurpose:
    MASK = torch.tensor([[True, False, False], [False, True, True]])

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: x.masked_fill(TestInfinityOnPurpose.MASK, -torch.inf).softmax(-1),
            lambda x: torch.where(TestInfinityOnPurpose.MASK, -torch.inf, x).softmax(-1),
            lambda x: (x + torch.full((2, 3), -torch.inf).triu(1)).exp(),
            lambda x: x.masked_fill(TestInfinityOnPurpose.MASK, -torch.inf),  # returned
            lambda x: torch.log(x * 0).exp(),  # not a constant, but it stays inside the layer
            lambda x: x.clamp(-torch.inf, torch.inf),
        ],
    )
    def test_masks_are_let_through(self, function: Callable[[Tensor], Tensor]) -> None:
        model = nn.Sequential(Applied(function), nn.Softmax(-1))
        with torch.no_grad():
            expected = model(X)
        with tp.check_finite(model):
            found = model(X)
        assert torch.equal(found, expected)

    def test_masks_as_buffers_and_arguments(self) -> None:
        class Attention(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
                self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))

            def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
                return self.attention(x, x, x, attn_mask=self.mask, key_padding_mask=padding)[0]

        model, x = Attention(), torch.randn(2, 3, 4)
        with tp.check_finite(model):
            model(x).sum().backward()
        hidden = torch.zeros(2, 3)
        hidden[0, 0] = -torch.inf  # nothing is left of the first row
        with pytest.raises(InputNotFinite, match="A mask of -inf") as caught, tp.check_finite(model):
            model(x, hidden)
        assert caught.value.layer == "attention"
        assert "multi_head_attention_forward" in caught.value.operation

    def test_a_row_that_is_hidden_as_a_whole(self) -> None:
        error = raised(Applied(lambda x: F.softmax(x.masked_fill(x == x, -torch.inf), -1)))
        assert error.operation == "torch.nn.functional.softmax"
        assert "put in on purpose" in str(error)

    def test_nan_is_never_on_purpose(self) -> None:
        assert raised(Applied(lambda x: x.masked_fill(x == x, torch.nan))).operation == "torch.Tensor.masked_fill"

    def test_exclude(self) -> None:
        model = nn.Sequential(Applied(torch.log), nn.ReLU(), nn.Sequential(Applied(lambda x: torch.nan_to_num(x) / 0)))
        with tp.check_finite(model[:2], exclude="0"):
            model[:2](X)
        error = raised(model, exclude=["0", nn.ReLU])
        assert error.layer == "2.0"  # its own infinity, not that of the excluded layer
        with tp.check_finite(model, exclude=["0", "2"]):  # also what is inside of 2
            model(X)


class TestTheBlock:
    def test_results_are_the_same_and_nothing_stays_behind(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)).train()
        x = torch.randn(2, 3, 8, 8)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        found = []
        for checked in (False, True):
            model.load_state_dict(state)
            model.zero_grad()
            torch.manual_seed(1)
            if checked:
                with tp.check_finite(model):
                    output = model(x)
                    output.sum().backward()
            else:
                output = model(x)
                output.sum().backward()
            found.append([output, *(each.grad for each in model.parameters()), *model.buffers(), torch.rand(1)])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        for module in model.modules():
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
        assert not torch.overrides._is_torch_function_mode_enabled()

    def test_after_an_exception_and_ctrl_c(self) -> None:
        def interrupted(x: Tensor) -> Tensor:
            raise KeyboardInterrupt

        model = nn.Sequential(Applied(interrupted))
        with tp.check_finite(model):
            with pytest.raises(KeyboardInterrupt):
                model(X)
            model[0].function = torch.log
            with pytest.raises(LayerNotFinite) as caught:
                model(X)
        assert (caught.value.layer, caught.value.pass_number) == ("0", 1)
        assert not model._forward_hooks

    def test_a_model_that_calls_itself(self) -> None:
        class Recursive(nn.Module):
            def forward(self, x: Tensor, depth: int = 2) -> Tensor:
                return self(x, depth - 1) - 1 if depth else x.log()

        x = torch.full((1,), 8.0)
        assert raised(nn.Sequential(Recursive()), x * 0).call == 2
        model = Recursive()
        with tp.check_finite(model):
            assert model(x).item() == pytest.approx(0.0794, abs=1e-4)
        error = raised(model, x * 0)
        assert (error.layer, error.call, error.pass_number, error.operation) == ("", 2, 0, "torch.Tensor.log")

    def test_a_layer_that_raises_and_is_caught(self) -> None:
        class Tries(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Linear(7, 3).double()

            def forward(self, x: Tensor) -> Tensor:
                try:
                    return self.first(x)
                except RuntimeError:
                    return torch.log(x)

        assert raised(nn.Sequential(Tries())).layer == "0"

    def test_tensors_without_numbers(self) -> None:
        with tp.check_finite(nn.Linear(2, 2, device="meta")) as nothing:
            assert nothing is None
        model = nn.Sequential(nn.Linear(2, 2, device="meta"))
        with tp.check_finite(model):
            model(torch.ones(1, 2, device="meta"))
            nn.Identity()(torch.ones(0, 2))
        with tp.check_finite(nn.Flatten()):
            nn.Flatten()(torch.ones(0, 2, 2))

    def test_another_model_that_shares_the_layer_is_not_checked(self) -> None:
        body = Applied(torch.log)
        actor, critic = nn.Sequential(body, nn.Linear(3, 1).double()), nn.Sequential(body, nn.Linear(3, 2).double())
        with tp.check_finite(actor):
            critic(X)
            with pytest.raises(LayerNotFinite):
                actor(X)

    def test_inside_of_vmap_and_grad(self) -> None:
        model, fine = nn.Sequential(Applied(torch.log)), nn.Sequential(Applied(torch.tanh))
        with tp.check_finite(fine):
            assert torch.equal(torch.vmap(fine)(X), fine(X))
            weights = dict(fine.named_parameters())
            torch.func.grad(lambda named: torch.func.functional_call(fine, named, (X,)).sum())(weights)
            torch.autograd.functional.jacobian(fine, X, vectorize=True)
        with pytest.raises(LayerNotFinite) as caught, tp.check_finite(model):
            torch.vmap(model)(X)
        assert (caught.value.layer, caught.value.operation) == ("0", "torch.log")

    def test_weights_of_functional_call_have_their_names(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3).double())
        weights = {name: torch.full_like(weight, torch.nan) for name, weight in model.named_parameters()}
        named = r"weights of layer '0' .*: parameter '0\.bias', .*; parameter '0\.weight', "
        with pytest.raises(LayerNotFinite, match=named), tp.check_finite(model):
            torch.func.functional_call(model, weights, (X,))

    @pytest.mark.parametrize("write", [lambda y: y.data.div_(0), lambda y: y.numpy().fill(torch.nan)])
    def test_writes_that_torch_does_not_count(self, write: Any) -> None:
        def function(x: torch.Tensor) -> torch.Tensor:
            result = x + 1
            write(result)
            return result

        model = nn.Sequential(Applied(function), nn.Linear(3, 3).double())
        with torch.no_grad(), pytest.raises(LayerNotFinite) as caught, tp.check_finite(model):
            model(X)
        assert caught.value.layer == "0"

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_the_fast_path_of_transformers(self) -> None:
        """Operations are not seen in it, because it is not taken where a mode is active. Nothing else is different."""
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.Sequential(nn.TransformerEncoder(layer, 2), nn.ReLU()).eval()
        model[0].register_forward_pre_hook(lambda module, args: (args[0], None, hidden))
        x, hidden = torch.randn(2, 5, 8), torch.arange(10).view(2, 5) > 6
        with torch.no_grad():
            plain = model(x)
            with tp.check_finite(model):
                assert torch.equal(model(x), plain)
            with pytest.raises(InputNotFinite), tp.check_finite(model):
                model(x * torch.nan)
            model[0].layers[1].linear1.weight[0, 0] = torch.nan
            assert raised(model, x).layer.startswith("0.layers.1")
            with tp.check_finite(nn.Sequential(model[0], nn.ReLU()), exclude="0"):
                assert torch.overrides._is_torch_function_mode_enabled()
        assert not torch.overrides._is_torch_function_mode_enabled()

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_nested_and_sparse_tensors(self) -> None:
        parts = [torch.randn(2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)]
        nested = torch.nested.nested_tensor(parts, layout=torch.jagged)
        assert raised(nn.Sequential(Applied(torch.log)), nested).operation == "torch.log"
        with tp.check_finite(nn.Linear(3, 3).double()) as _:
            nn.Linear(3, 3).double()(X.to_sparse())

    def test_errors(self) -> None:
        model = nn.Linear(3, 3)
        with pytest.raises(LayerNotFound), tp.check_finite(model, exclude="layr"):
            pass
        with pytest.raises(InputError, match="model is"), tp.check_finite("resnet18"):  # type: ignore[arg-type]
            pass
        with pytest.warns(Notice, match="thrown away before it was opened"):
            tp.check_finite(model)

    def test_the_error_can_be_pickled(self) -> None:
        import pickle

        error = raised(Applied(torch.log))
        twin = pickle.loads(pickle.dumps(error))
        assert vars(twin) == vars(error)
        assert str(twin) == str(error)

    def test_a_compiled_model_runs_eagerly(self) -> None:
        model = torch.compile(nn.Sequential(Applied(torch.log)), backend="eager")
        with pytest.warns(Notice, match="runs eagerly"):
            assert raised(model).layer == "_orig_mod.0"
