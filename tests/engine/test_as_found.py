"""What forward writes into its model is undone: attributes, containers, versions, submodules and parameters."""

from __future__ import annotations

import warnings
from collections import ChainMap, Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, spectral_norm, weight_norm

import torchpeek as tp
from networks import PooledNet

INPUTS = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8).sin()

# Every public function that runs a model of its own accord.
CALLS: dict[str, Callable[[nn.Module], object]] = {
    "explain": lambda model: tp.explain(model, INPUTS),
    "explain, by ablation": lambda model: tp.explain(model, INPUTS, layer="act", method="ablationcam"),
    "trace": lambda model: tp.trace(model, INPUTS, layer="act").scores,
    "layers": lambda model: tp.layers(model, INPUTS),
    "kernels": lambda model: tp.kernels(model),
    "activations": lambda model: tp.activations(model, INPUTS, "act"),
    "statistics": lambda model: tp.statistics(model, [INPUTS]),
    "gradient_flow": lambda model: tp.gradient_flow(model, INPUTS),
    "plan": lambda model: tp.plan(model, INPUTS, "act"),
    "evaluate": lambda model: tp.evaluate(
        model, INPUTS, tp.explain(model, INPUTS, layer="act"), metrics={"deletion": {"steps": 2}}
    ),
}


class Writing(PooledNet):
    """A network that writes into itself in every way that forward can."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.calls, self.last, self.average = 0, None, torch.ones(3)
        self.history: list[Tensor] = []
        self.by_number: dict[int, Tensor] = {}
        self.scale = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.calls += 1
        self.last = x
        self.average.mul_(0.5)
        self.history.append(x)
        self.by_number[self.calls] = x
        self.scale = torch.ones(1)  # equal to the one before, and not the same
        self.extra = x
        self.added = nn.Identity()
        return super().forward(x) * self.scale


def written(model: Writing) -> dict[str, object]:
    """What Writing writes, in a form that `==` compares."""
    return {
        "names": sorted(model.__dict__),
        "modules": list(model._modules),
        "objects": [id(getattr(model, name)) for name in ("count", "last", "average", "history", "by_number", "scale")],
        "values": [model.count.item(), model.calls, model.average.tolist()],
        "members": [list(map(id, model.history)), {key: id(value) for key, value in model.by_number.items()}],
        "versions": [model.count._version, model.average._version],
    }


@pytest.mark.parametrize("name", CALLS)
def test_everything_that_forward_writes_is_undone(name: str) -> None:
    model = Writing()
    model(INPUTS)
    before = written(model)
    CALLS[name](model)
    assert written(model) == before


@pytest.mark.parametrize("name", CALLS)
def test_a_graph_of_the_users_that_holds_a_buffer_goes_back(name: str) -> None:
    model = Writing()
    model(INPUTS)
    factor = torch.ones((), requires_grad=True)
    product = factor * model.count
    CALLS[name](model)
    product.backward()
    assert factor.grad == 1  # the value of the buffer


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "reparametrise", [spectral_norm, weight_norm, lambda layer: prune.l1_unstructured(layer, "weight", 0.5)]
)
def test_a_weight_that_a_hook_computes_is_that_of_the_users_last_pass(name: str, reparametrise: Callable) -> None:
    model = PooledNet()
    reparametrise(model.features[0])
    scores = model(INPUTS).sum()
    weight = model.features[0].weight
    CALLS[name](model)
    assert model.features[0].weight is weight
    assert weight.requires_grad
    scores.backward()


def test_a_call_that_raises_undoes_it_as_well() -> None:
    model = Writing()
    before = written(model)
    model.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tp.explain(model, INPUTS, layer="act")
    assert written(model) == before


def test_attributes_set_before_the_modules_own() -> None:
    class Early(PooledNet):
        def __init__(self) -> None:
            self.early = []
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            self.early.append(1)
            return super().forward(x)

    model = Early()
    tp.explain(model, INPUTS, layer="act")
    assert model.early == []


def test_attributes_that_cannot_be_compared() -> None:
    class Incomparable:
        def __eq__(self, other: object) -> bool:
            raise AssertionError("nobody should ask")

        __hash__ = None  # type: ignore[assignment]

    class Changing(PooledNet):
        def forward(self, x: Tensor) -> Tensor:
            self.state = Incomparable()
            return super().forward(x)

    model = Changing()
    state = model.state = Incomparable()
    tp.explain(model, INPUTS, layer="act")
    assert model.state is state


def test_a_parameter_that_forward_changes_is_told() -> None:
    class Clipping(PooledNet):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.features[0].weight.clamp_(-0.01, 0.01)
            return super().forward(x)

    with pytest.warns(tp.errors.Notice, match=r"changed parameters in place: 'Conv2d.weight'"):
        tp.activations(Clipping(), INPUTS, "act")


def test_a_parameter_that_forward_freezes_or_replaces() -> None:
    class Replacing(PooledNet):
        def forward(self, x: Tensor) -> Tensor:
            self.head.bias.requires_grad_(False)
            self.head.weight = nn.Parameter(self.head.weight.detach().clone())
            return super().forward(x)

    model = Replacing()
    weight = model.head.weight
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tp.explain(model, INPUTS, layer="act")
    assert model.head.weight is weight
    assert model.head.bias.requires_grad


class LazyScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.UninitializedParameter()

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.scale, nn.UninitializedParameter):
            self.scale.materialize(x.shape[1:2])
            nn.init.ones_(self.scale)
        return x * self.scale.view(-1, 1, 1)


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("kernels",)])
@pytest.mark.parametrize("lazy", [lambda: nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d, LazyScale])
def test_a_lazy_layer_is_refused_with_the_line_to_write(name: str, lazy: Callable[[], nn.Module]) -> None:
    model = PooledNet()
    layer = lazy()
    model.features = nn.Sequential(model.features, layer)
    with pytest.raises(tp.errors.InputError, match=r"with torch\.no_grad\(\): model\(inputs\)"):
        CALLS[name](model)
    assert any(isinstance(each, nn.parameter.UninitializedTensorMixin) for each in layer.parameters())


@pytest.mark.parametrize("name", [name for name in CALLS if name not in ("kernels", "gradient_flow")])
@pytest.mark.parametrize("lazy", [lambda: nn.LazyConv2d(3, 1), LazyScale])
def test_a_lazy_layer_in_a_plain_list_is_refused(name: str, lazy: Callable[[], nn.Module]) -> None:
    class InAList(PooledNet):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [lazy()]

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.layers[0](x))

    model = InAList()
    kind = type(model.layers[0])
    with pytest.raises(tp.errors.InputError, match="not initialised yet"):
        CALLS[name](model)
    assert type(model.layers[0]) is kind
    assert any(isinstance(each, nn.parameter.UninitializedTensorMixin) for each in model.layers[0].parameters())


class Total:
    """An object of a user's own class."""

    def __init__(self) -> None:
        self.count, self.sum, self.parts = 0, torch.zeros(3), {"all": [torch.zeros(2)]}


class Holding(PooledNet):
    """A network whose attributes hold what forward writes into."""

    def __init__(self) -> None:
        super().__init__()
        self.array, self.raw, self.total, self.draws = np.zeros(3), bytearray(2), Total(), torch.Generator()
        self.nested = {"a": {"b": [1]}, "t": (torch.zeros(2), [1])}
        self.counter, self.lists = Counter(a=1), defaultdict(list)
        self.teacher = [nn.BatchNorm2d(3)]
        self.memory, self.plain, self.chain = torch.zeros(3).numpy(), torch.zeros(3), ChainMap({"a": 1})
        self.other = nn.ReLU()
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("large", torch.zeros(5000))

    def forward(self, x: Tensor) -> Tensor:
        self.array += 1
        self.raw[0] += 1
        self.total.count += 1
        self.total.sum.add_(1)
        self.total.parts["all"][0].add_(1)
        self.total.parts["more"] = [x]
        torch.rand(1, generator=self.draws)
        self.nested["a"]["b"].append(2)
        self.nested["t"][0].add_(1)
        self.nested["t"][1].append(2)
        self.counter["a"] += 1
        self.lists["k"].append(x)
        self.teacher[0](x)
        self.memory += 1  # memory of torch, of which NumPy takes no flag back
        self.plain.requires_grad_()
        self.large.requires_grad_()
        self.chain["b"] = 2
        self.other.__class__ = nn.Identity
        self.sparse.mul_(2)
        return super().forward(x)

    def held(self) -> list[object]:
        """What forward writes, in a form that `==` compares."""
        total, norm = self.total, self.teacher[0]
        return [
            [self.array.tolist(), bytes(self.raw), self.draws.get_state().tolist(), dict(self.counter)],
            [total.count, total.sum.tolist(), total.sum._version, sorted(total.parts), total.parts["all"][0].tolist()],
            [self.nested["a"], self.nested["t"][0].tolist(), self.nested["t"][1], sorted(self.lists)],
            [(each.tolist(), each._version) for each in norm.buffers()] + [norm.training],
            [self.memory.tolist(), self.plain.requires_grad, self.large.requires_grad, dict(self.chain)],
            [type(self.other), self.sparse.to_dense().tolist(), self.sparse.is_coalesced()],
        ]


@pytest.mark.parametrize("name", CALLS)
def test_what_attributes_hold_is_undone(name: str) -> None:
    model = Holding()
    before = model.held()
    CALLS[name](model)
    assert model.held() == before


def test_an_attribute_that_is_equal_to_everything_is_restored() -> None:
    class Equal:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    class Changing(PooledNet):
        def forward(self, x: Tensor) -> Tensor:
            self.state, self.number = Equal(), 1.0
            return super().forward(x)

    model = Changing()
    state = model.state = Equal()
    model.number = 1
    tp.explain(model, INPUTS, layer="act")
    assert model.state is state
    assert type(model.number) is int


class OtherMemory(PooledNet):
    """Buffers that overlap in memory, share it, or get other memory in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.base = torch.zeros(1)
        self.register_buffer("expanded", self.base.expand(5))
        self.windows = torch.arange(6.0).as_strided((4, 3), (1, 1))
        whole = torch.zeros(6)
        self.register_buffer("one", whole[:4])
        self.register_buffer("other", whole[2:])
        self.register_buffer("resized", torch.ones(3))
        self.register_buffer("assigned", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        self.base += 1
        self.windows[0, 0].add_(5)
        self.one += 1
        self.other.mul_(2).add_(1)
        self.resized.resize_(80).fill_(3)
        self.assigned.data = torch.zeros(4)
        return super().forward(x) + self.expanded


def test_buffers_stay_the_same_part_of_the_same_memory() -> None:
    model = OtherMemory()
    names = ("base", "expanded", "windows", "one", "other", "assigned", "resized")

    def state() -> list[object]:
        tensors = [getattr(model, name) for name in names]
        return [(each.tolist(), each.stride(), each._version, each.storage_offset()) for each in tensors]

    before, places = state(), [getattr(model, name).data_ptr() for name in names[:-1]]
    tp.explain(model, INPUTS, layer="act")
    assert state() == before
    assert [getattr(model, name).data_ptr() for name in names[:-1]] == places
    model.base += 7
    assert model.expanded.tolist() == [7.0] * 5


def test_a_parameter_that_forward_gives_other_memory_is_told() -> None:
    former = []  # memory that is free again could be what comes next

    class Averaging(PooledNet):
        def forward(self, x: Tensor) -> Tensor:
            former.append(self.head.weight.data)
            self.head.weight.data = self.head.weight.data * 0.5
            return super().forward(x)

    with pytest.warns(tp.Notice, match=r"changed parameters in place: 'Linear\.weight"):
        tp.trace(Averaging(), INPUTS, layer="act")


def test_hooks_that_the_first_pass_registers_and_notes() -> None:
    """As in transformers: were only the note taken back, the next pass would register them a second time."""

    class Observed(PooledNet):
        def forward(self, x: Tensor) -> Tensor:
            if "observed" not in vars(self):
                self.observed = True
                self.act.register_forward_hook(lambda module, args, output: output + 1)
            return super().forward(x)

    model = Observed().eval()
    expected = Observed().eval()
    expected.load_state_dict(model.state_dict())
    kept = model.act.register_forward_hook(lambda module, args, output: None)
    before = list(model.act._forward_hooks)
    for _ in range(2):
        trace = tp.trace(model, INPUTS, layer="act")
        assert list(model.act._forward_hooks) == before
    torch.testing.assert_close(trace.scores, expected(INPUTS).gather(1, trace.question.labels))
    kept.remove()
    assert not model.act._forward_hooks
