"""Maps in a training loss: the same numbers and derivatives as plain autograd with create_graph, the step as it is."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchpeek as tp
from networks import SplitNet, messy
from torchpeek.cam import METHODS
from torchpeek.errors import GradUnavailable, InputError, MethodNotApplicable

X = torch.randn(3, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([[0, 1], [2, 1], [1, 0]])
DIFFERENTIABLE = [name for name, method in METHODS.items() if method.differentiable]


class Trained(nn.Module):
    """Batch normalisation and smooth activation functions, so that second derivatives are not zero."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.act, self.mix, self.second = nn.Softplus(), nn.Conv2d(5, 4, 3, stride=2), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(4 * 3 * 2, 3)

    def layer(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))

    def rest(self, a: Tensor) -> Tensor:
        return self.head(self.drop(torch.tanh(self.second(self.mix(a))).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.layer(x))


class Pooled(nn.Module):
    """Global average pooling and a linear head after the layer, as cam needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Softplus(), nn.Linear(5, 3)

    def layer(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))

    def rest(self, a: Tensor) -> Tensor:
        return self.head(a.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.layer(x))


def by_autograd(model: Trained | Pooled, x: Tensor, labels: Tensor, name: str) -> Tensor:
    """(N, K, h, w) by plain autograd, one class at a time, from the papers' equations."""
    a = model.layer(x)
    scores = model.rest(a).gather(1, labels)
    maps = []
    for k in range(labels.shape[1]):
        (g,) = torch.autograd.grad(scores[:, k].sum(), a, create_graph=True)
        total = a.sum((2, 3), keepdim=True)
        s = torch.where(g != 0, g, 1)  # where g is zero, the position adds nothing
        maps.append(
            {
                "cam": lambda g=g: g.mean((2, 3), keepdim=True) * g[0, 0].numel() * a,
                "gradcam": lambda g=g: g.mean((2, 3), keepdim=True) * a,
                "gradcam++": lambda g=g, s=s, total=total: (
                    (s**2 / (2 * s**2 + total * s**3) * g.relu()).sum((2, 3), keepdim=True) * a
                ),
                "xgradcam": lambda g=g, total=total: (a / total * g).sum((2, 3), keepdim=True) * a,
                "hirescam": lambda g=g: g * a,
                "gradcam-elementwise": lambda g=g: (g * a).relu(),
                "layercam": lambda g=g: g.relu() * a,
            }[name]().sum(1)
        )
    return torch.stack(maps, dim=1)


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if name != "refinecam"])
def test_the_gradient_of_a_loss(name: str, training: bool) -> None:
    """With respect to every parameter, also through batch normalisation in training mode; several scores at once."""
    model = (Pooled() if name == "cam" else Trained()).double().train(training)
    plain = copy.deepcopy(model)
    weights = torch.randn(3, 2, 8, 6, dtype=torch.float64)
    expected = by_autograd(plain, X, LABELS, name)
    trace = tp.trace(model, X, layer="act", target=LABELS, create_graph=True)
    heatmap = tp.explain(trace, method=name)
    torch.testing.assert_close(heatmap.values, expected, rtol=1e-9, atol=1e-14)
    ours = gradients((heatmap.values * weights).square().sum() + heatmap.scores.sum(), model)
    of_scores = plain(X).gather(1, LABELS).sum()
    theirs = gradients((expected * weights).square().sum() + of_scores, plain)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_each_differentiable_method_is_checked() -> None:
    assert set(DIFFERENTIABLE) == {
        "cam",
        "gradcam",
        "gradcam++",
        "xgradcam",
        "hirescam",
        "gradcam-elementwise",
        "layercam",
        "refinecam",
    }


@pytest.mark.filterwarnings("ignore:refinecam.*maps are exactly zero everywhere")
def test_several_layers() -> None:
    model = Trained().double()
    trace = tp.trace(model, X, layer=["act", "mix"], target=1, create_graph=True)
    (layers,) = {tuple(trace.at)}
    fused = tp.explain(trace, method="gradcam", fuse="mean").values
    refined = tp.explain(trace, method="refinecam").values
    for values in (fused, refined):
        assert values.requires_grad
        got = gradients(values.sum(), model)
        assert all(torch.isfinite(each).all() for each in got)
        assert float(got[0].abs().max()) > 0
    assert layers == ("act", "mix")


def test_one_step_of_the_callers_own_training() -> None:
    """The modes stay; running statistics and random numbers are those after one forward pass of the caller's."""
    model = Trained(dropout=0.5).double().train()
    model.second.eval()  # frozen statistics in the middle of a network that trains
    plain = copy.deepcopy(model)
    tp.trace(copy.deepcopy(model), X, create_graph=True)
    torch.manual_seed(7)
    expected = plain(X)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    trace = tp.trace(model, X, create_graph=True)  # suggests a layer first, in eval mode, which leaves no mark
    torch.testing.assert_close(trace.output, expected)
    assert torch.equal(torch.get_rng_state(), after)
    assert [module.training for module in model.modules()] == [module.training for module in plain.modules()]
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_loss_with_a_map_trains() -> None:
    """Attention guided from outside a mask: the share of the map there falls, and so does the cross entropy."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 2)
    ).train()
    labels = torch.tensor([0, 1] * 8)
    x = torch.randn(16, 1, 8, 8) * 0.1
    x += labels.view(-1, 1, 1, 1)  # the lower half distinguishes the classes as well as the upper one does
    outside = torch.zeros(8, 8)
    outside[4:] = 1
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    history = []
    for _ in range(40):
        trace = tp.trace(model, x, layer="2", target=labels, create_graph=True)
        values = tp.explain(trace, method="hirescam").positive().values
        share = (values * outside).sum() / values.sum()
        entropy = F.cross_entropy(trace.output, labels)
        adam.zero_grad()
        (entropy + share).backward()
        adam.step()
        history.append((entropy.item(), share.item()))
    assert 0.3 < history[0][1] < 0.7
    assert history[-1][1] < 0.1
    assert history[-1][0] < history[0][0] / 5
    assert int(model[1].num_batches_tracked) == 40  # one forward pass for each step


@pytest.mark.parametrize("frozen", ["conv norm", "conv norm act mix second head"])
def test_frozen_parameters(frozen: str) -> None:
    """What is frozen has no gradient, and what is not has the right one."""
    model = Trained().double().train()
    for name in frozen.split():
        getattr(model, name).requires_grad_(False)
    plain = copy.deepcopy(model)
    trace = tp.trace(model, X, layer="act", target=LABELS, create_graph=True)
    values = tp.explain(trace, method="layercam").values
    a = plain.layer(X)
    a = a if a.requires_grad else a.requires_grad_()
    (g,) = torch.autograd.grad(plain.rest(a).gather(1, LABELS)[:, 0].sum(), a, create_graph=True)
    torch.testing.assert_close(values[:, 0], (g.relu() * a).sum(1))
    if "head" in frozen:
        return
    values[:, 0].square().sum().backward()
    (g.relu() * a).sum(1).square().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_in_the_callers_modes(context: Callable) -> None:
    with context():
        trace = tp.trace(Trained().double(), X, create_graph=True)
        assert tp.explain(trace).values.requires_grad
        assert tp.explain(trace, target=2).scores.requires_grad
        assert not tp.explain(Trained().double(), X).values.requires_grad
        assert torch.is_grad_enabled() is (context is torch.enable_grad)
    assert torch.is_grad_enabled()


def test_in_place_after_the_layer() -> None:
    """The map is of what the layer returned, and its gradient that of the loss."""

    class InPlace(Trained):
        def rest(self, a: Tensor) -> Tensor:
            return super().rest(a.mul(1.0).mul_(2.0) if self.plain else a.mul_(2.0))

    model = InPlace().double()
    model.act = nn.Identity()
    plain = copy.deepcopy(model)
    model.plain, plain.plain = False, True
    ours, theirs = (
        tp.explain(tp.trace(each, X, layer="act", target=1, create_graph=True), method="layercam").values
        for each in (model, plain)
    )
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(gradients(ours.square().sum(), model), gradients(theirs.square().sum(), plain), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layer", ["act", "conv"])
def test_a_layer_inside_a_checkpointed_part(layer: str) -> None:
    """The part runs once more in the backward pass, and must save the same tensors as with the trace's hook."""

    class Checkpointed(Trained):
        def layer(self, x: Tensor) -> Tensor:
            return checkpoint(super().layer, x, use_reentrant=False)

    model, plain = Checkpointed().double().eval(), Trained().double().eval()
    plain.load_state_dict(model.state_dict())
    found = []
    for each in (model, plain):
        values = tp.explain(tp.trace(each, X, layer=layer, target=LABELS, create_graph=True), method="hirescam").values
        found.append(gradients(values.square().sum(), each))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_fused_attention_has_second_derivatives() -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.qkv, self.head = nn.Conv2d(3, 4, 2, stride=2), nn.Linear(4, 12), nn.Linear(4, 3)
            self.fused = True

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(self.embed(x).flatten(2).mT).chunk(3, dim=-1)
            out = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT / 2).softmax(-1) @ v
            return self.head(out.mean(1))

    model = Attending().double()
    found = []
    for fused in (True, False):
        model.fused = fused
        trace = tp.trace(model, X, layer="embed", target=LABELS, create_graph=True)
        values = tp.explain(trace, method="hirescam").values
        found.append((values, *gradients(values.square().sum(), model)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_after_an_error_in_the_middle(error: BaseException) -> None:
    model = messy()
    x = torch.randn(2, 3, 8, 8)
    tp.trace(model, x, layer="act")  # what the layer returns is known
    before = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    model.fail_with = error
    with pytest.raises(type(error)):
        tp.trace(model, x, layer="act", create_graph=True)
    assert [(module.training, len(module._forward_hooks)) for module in model.modules()] == before
    assert torch.is_grad_enabled()
    model.fail_with = None
    worker = threading.Thread(target=lambda: found.append(tp.explain(model, x, layer="act")))
    found: list[tp.Heatmap] = []
    worker.start()  # the lock was released
    worker.join(timeout=60)
    assert len(found) == 1


def test_the_views_of_a_map_keep_the_graph(tmp_path) -> None:
    model = Trained().eval()
    heatmap = tp.explain(tp.trace(model, X.float(), layer="act", create_graph=True))
    for each in (heatmap.positive(), heatmap.unit(), heatmap.resized((4, 4)), heatmap[0], heatmap.positive().unit()):
        assert each.values.requires_grad
    tp.save(heatmap, tmp_path / "map.safetensors")
    assert not tp.load(tmp_path / "map.safetensors").values.requires_grad
    tp.render.overlay(Image.new("RGB", (6, 8)), heatmap[0], signed=True)
    measured = tp.evaluate(model, X.float(), heatmap, metrics=["deletion", "sparseness"])
    assert not any(each.values.requires_grad for each in measured.values())


def test_a_map_of_zeros_has_no_nan_for_a_derivative() -> None:
    """Dead channels, and a map that is zero everywhere: a loss stays finite."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 2))
    model = model.double()
    with torch.no_grad():
        model[0].bias[:2] = -100
    trace = tp.trace(model, X, layer="1", target=1, create_graph=True)
    for name in ("gradcam", "gradcam++", "xgradcam", "layercam"):
        values = tp.explain(trace, method=name).positive().unit().values
        assert all(torch.isfinite(each).all() for each in gradients(values.sum(), model)), name
    unit = tp.explain(trace).unit().values * 0
    heatmap = tp.Heatmap(unit, trace.scores, trace.question, tp.Provenance("gradcam", "1"))
    assert all(torch.isfinite(each).all() for each in gradients(heatmap.unit().values.sum(), model))


def test_what_is_refused(net: SplitNet) -> None:
    trace = tp.trace(net, X, layer="prefix", create_graph=True)
    for name in set(METHODS) - set(DIFFERENTIABLE):
        with pytest.raises(MethodNotApplicable, match=r"is not defined for a trace with create_graph=True.*gradcam"):
            tp.explain(trace, method=name)
    with pytest.raises(MethodNotApplicable, match="smooth= runs further passes"):
        tp.explain(trace, smooth=tp.Smoothing())
    for ask in (
        lambda: trace.again(X),
        lambda: trace.rescore(lambda x, rows, trials: x, 1),
        lambda: trace.ablate(lambda x, rows, trials: x, 1),
        lambda: trace.input_gradients(X, torch.arange(3), torch.zeros(3, dtype=torch.long)),
    ):
        with pytest.raises(GradUnavailable, match="create_graph=True, of the model as it was"):
            ask()
    for options in ({"ablations": True}, {"attention": True}):
        with pytest.raises(InputError, match="Next: make two traces"):
            tp.trace(net, X, layer="prefix", create_graph=True, **options)
    with pytest.raises(InputError, match="the inputs require a gradient"):
        tp.trace(net, X.clone().requires_grad_(), layer="prefix", create_graph=True)
    with pytest.raises(tp.errors.OptionError, match="option base is 'eigencam'"):
        tp.explain(tp.trace(net, X, layer=["prefix", "mix"], create_graph=True), method="refinecam", base="eigencam")
