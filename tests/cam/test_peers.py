"""The same maps by other tools where those are right, and the cases where they are not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import torchpeek as tp
from networks import PooledNet, SplitNet
from torchpeek.cam import fused
from torchpeek.engine import bias_gradients

X = torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def unit(values: np.ndarray) -> np.ndarray:
    """As grad-cam does at last: a ReLU, then each map from its minimum to its maximum."""
    values = np.maximum(values, 0)
    low, high = values.min((-2, -1), keepdims=True), values.max((-2, -1), keepdims=True)
    return (values - low) / (high - low)


@pytest.mark.parametrize("label", [0, 3])
def test_captum_layer_gradcam(net: SplitNet, label: int) -> None:
    from captum.attr import LayerGradCam

    theirs = LayerGradCam(net, net.prefix).attribute(X, target=label, relu_attributions=False)
    ours = tp.explain(net, X, method="gradcam", layer="prefix", target=label).values
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("name", "peer"), [("gradcam", "GradCAM"), ("xgradcam", "XGradCAM"), ("layercam", "LayerCAM")])
def test_torchcam(net: SplitNet, name: str, peer: str) -> None:
    import torchcam.methods

    model, x = net.float(), X.float()
    with getattr(torchcam.methods, peer)(model, target_layer="prefix") as extractor:
        theirs = extractor([1, 2], model(x), normalized=False)[0]
    ours = tp.explain(model, x, method=name, layer="prefix", target=[1, 2]).positive().values[:, 0]
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("gradcam", "GradCAM"),
        ("hirescam", "HiResCAM"),
        ("gradcam-elementwise", "GradCAMElementWise"),
        ("gradcam++", "GradCAMPlusPlus"),
    ],
)
def test_grad_cam(name: str, peer: str) -> None:
    """At a layer as large as the input, where it does not resize."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = PooledNet().eval()
    with torch.no_grad():
        model.head.weight.mul_(100)  # its GradCAMPlusPlus adds 1e-6 to a quotient of squares and cubes of gradients
    x = X.float()
    with getattr(pytorch_grad_cam, peer)(model=model, target_layers=[model.act]) as extractor:
        theirs = extractor(input_tensor=x, targets=[ClassifierOutputTarget(1), ClassifierOutputTarget(2)])
    ours = tp.explain(model, x, method=name, layer="act", target=[1, 2]).values[:, 0].numpy()
    np.testing.assert_allclose(unit(ours), theirs, atol=2e-5 if name != "gradcam++" else 2e-3)


@pytest.mark.parametrize(("name", "peer", "options"), [("scorecam", "ScoreCAM", {}), ("iscam", "ISCAM", {"steps": 1})])
def test_torchcam_of_many_passes(name: str, peer: str, options: dict) -> None:
    """At a layer as large as the input: it scales masks before it upsamples them. Of IS-CAM the one step both have."""
    import torchcam.methods

    model, x = PooledNet().eval(), X.float()
    samples = {"num_samples": 1} if options else {}
    with getattr(torchcam.methods, peer)(model, target_layer="act", input_shape=(3, 8, 6), **samples) as extractor:
        theirs = extractor([1, 2], model(x), normalized=False)[0]
    ours = tp.explain(model, x, method=name, layer="act", target=[1, 2], **options).positive().values[:, 0]
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-6)


def test_torchcam_refinecam(net: SplitNet) -> None:
    """Of LayerCAM, as its Grad-CAM++ is wrong, and of maps less their minimum, which it subtracts."""
    import torchcam.methods

    model, x = net.float(), X[:1].float()
    with torchcam.methods.RefineCAM(
        model, ["prefix", "mix"], input_shape=(3, 8, 6), base_method=torchcam.methods.LayerCAM
    ) as extractor:
        theirs = extractor([1], model(x), normalized=False)[0]
    trace = tp.trace(model, x, layer=["prefix", "mix"], target=1)
    each = [tp.explain(trace.only(name), method="layercam").positive().values for name in trace.at]
    ours = fused([values - values.min() for values in each], "product")[:, 0]
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gamma", [None, 0.05])
def test_grad_cam_kernel_component(net: SplitNet, gamma: float | None) -> None:
    """Up to the sign, which it leaves as it comes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam.utils.svd_on_activations import get_2d_projection_kernel

    trace = tp.trace(net, X, layer="prefix")
    theirs = get_2d_projection_kernel(trace.activations.squeeze(1).numpy(), "sigmoid", gamma)
    ours = tp.explain(trace, method="kpcacam", gamma=gamma).values[:, 0].numpy()
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine * np.sign((mine * other).sum()), other, rtol=1e-4, atol=1e-5)


def test_grad_cam_seg_eigen_cam() -> None:
    """At a layer as large as the input, where it does not resize."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, x = PooledNet().eval(), X.float()
    with pytorch_grad_cam.SegEigenCAM(model=model, target_layers=[model.act]) as extractor:
        theirs = extractor(input_tensor=x, targets=[ClassifierOutputTarget(1), ClassifierOutputTarget(2)])
    ours = tp.explain(model, x, method="segeigencam", layer="act", target=[1, 2]).values[:, 0].numpy()
    np.testing.assert_allclose(unit(ours), theirs, atol=2e-4)


class TestPeerErrors:
    def test_grad_cam_ablation_depends_on_the_size_of_its_batches(self) -> None:
        """It writes a number far out of range, which it reads from what it has written into before."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytorch_grad_cam
            from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        conv, head = torch.nn.Conv2d(3, 6, 3), torch.nn.Linear(6, 4)
        model = torch.nn.Sequential(conv, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), head).eval()
        x, theirs = X[:1].float(), []
        for batch in (1, 6):
            with pytorch_grad_cam.AblationCAM(model=model, target_layers=[conv], batch_size=batch) as cam:
                theirs.append(cam(input_tensor=x, targets=[ClassifierOutputTarget(1)]))
        assert np.abs(theirs[0] - theirs[1]).max() > 0.05
        trace = tp.trace(model, x, layer="0", target=1)
        a, score = trace.activations.squeeze(1), trace.scores[0, 0]
        weights = head.weight[1].detach() * a[0].mean((1, 2)) / score.abs()  # by which it falls without each channel
        expected = (weights[:, None, None] * a[0]).sum(0)
        for batch in (1, 6):
            scores = trace.ablate(_without, 6, batch=batch)[0, :, 0]
            torch.testing.assert_close((score - scores) / score.abs(), weights, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(tp.explain(trace, method="ablationcam").values[0, 0], expected)

    def test_torchcam_iscam_goes_past_the_masked_input(self, net: SplitNet) -> None:
        """Its steps add up: at the last of four the masked input is multiplied by two and a half."""
        import torchcam.methods

        model, x = net.float(), X[:1].float()
        with torchcam.methods.ISCAM(model, target_layer="prefix", input_shape=(3, 8, 6), num_samples=4) as extractor:
            seen: list[float] = []
            handle = model.register_forward_pre_hook(lambda module, args: seen.append(float(args[0].abs().amax())))
            extractor([1], model(x), normalized=False)
            handle.remove()
        assert seen[-4:] == pytest.approx([seen[-4] * factor for factor in (1, 3, 6, 10)])
        seen.clear()
        handle = model.register_forward_pre_hook(lambda module, args: seen.append(float(args[0].abs().amax())))
        tp.explain(model, x, method="iscam", layer="prefix", target=1, steps=4)
        handle.remove()
        assert max(seen) <= float(x.abs().max()) * (1 + 1e-6)

    def test_grad_cam_full_gradient_skips_what_it_does_not_know(self) -> None:
        """Only exact types: a subclass of BatchNorm2d, as timm's are, has no bias there."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pytorch_grad_cam import FullGrad

        class Norm(torch.nn.BatchNorm2d):
            pass

        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3, bias=False), Norm(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.LazyLinear(2)
        )
        model.train()(X.float() * 3 + 1)
        with FullGrad(model=model.eval(), target_layers=[]) as extractor:
            assert (
                not any(layer is model[1] for layer in extractor.bias_data_layers)
                if hasattr(extractor, "bias_data_layers")
                else len(extractor.bias_data) < 2
            )
        trace = tp.trace(model, X.float(), layer="0", target=1, gradients=False)
        [found] = bias_gradients(trace.forward_pass, lambda each: each)
        assert len(found.biases) == 2
        assert float(found.remainder.abs().max()) < 1e-5

    def test_grad_cam_guided_backprop_misses_functions(self) -> None:
        """It replaces modules: of a ReLU that is a function the gradient is plain. The modules end as others."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pytorch_grad_cam import GuidedBackpropReLUModel

        class Functions(torch.nn.Sequential):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self[2](self[1](torch.relu(self[0](x))).relu().flatten(1))

        layers = torch.nn.Conv2d(3, 5, 3), torch.nn.Conv2d(5, 4, 3), torch.nn.Linear(32, 3)
        functions = Functions(*layers).eval()
        modules = torch.nn.Sequential(
            layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), torch.nn.Flatten(), layers[2]
        ).eval()
        before = modules[1]
        x = X[:1].float()
        ours = [tp.explain(each, x, method="guided-backprop", target=1).values[0, 0] for each in (functions, modules)]
        torch.testing.assert_close(*ours)
        theirs = [GuidedBackpropReLUModel(model=each, device="cpu")(x.clone(), 1) for each in (functions, modules)]
        strongest = [torch.from_numpy(each).abs().amax(2) for each in theirs]
        torch.testing.assert_close(strongest[1], ours[1])
        torch.testing.assert_close(strongest[0], tp.explain(functions, x, method="saliency", target=1).values[0, 0])
        assert modules[1] is not before

    def test_torchcam_gradcam_plus_plus(self, net: SplitNet) -> None:
        """gradient.py divides a copy, so its weights are the sum of relu(g)^3. If this fails, they mended it."""
        import torchcam.methods

        model, x = net.float(), X[:1].float()
        with torchcam.methods.GradCAMpp(model, target_layer="prefix") as extractor:
            theirs = extractor([1], model(x), normalized=False)[0]
        trace = tp.trace(model, x, layer="prefix", target=1)
        cubes = trace.gradients.clamp(min=0).pow(3).sum((3, 4), keepdim=True)
        wrong = (cubes * trace.activations).sum(2)[:, 0]
        torch.testing.assert_close(theirs.detach(), wrong.clamp(min=0), rtol=1e-3, atol=1e-9)
        right = tp.explain(trace, method="gradcam++").values[:, 0]
        assert not torch.allclose(unit_tensor(right), unit_tensor(theirs), atol=0.01)

    def test_grad_cam_gives_zero_maps_for_targets_that_are_missing(self) -> None:
        """Fewer targets than pictures: the last picture's map is zero, without a word."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytorch_grad_cam
            from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        model = PooledNet().eval()
        with pytorch_grad_cam.GradCAM(model=model, target_layers=[model.act]) as extractor:
            theirs = extractor(input_tensor=X.float(), targets=[ClassifierOutputTarget(1)])
        assert (theirs[1] == 0).all()
        with pytest.raises(tp.errors.TargetError):
            tp.explain(model, X.float(), layer="act", target=[1])

    def test_grad_cam_leaves_the_model_changed(self) -> None:
        """It ends in eval mode, with gradients destroyed or left behind."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytorch_grad_cam

        model = PooledNet().train()
        with pytorch_grad_cam.GradCAM(model=model, target_layers=[model.act]) as extractor:
            extractor(input_tensor=X.float(), targets=None)
        assert not model.training
        assert model.head.weight.grad is not None
        ours = PooledNet().train()
        tp.explain(ours, X.float())
        assert ours.training
        assert ours.head.weight.grad is None


def _without(given: torch.Tensor, rows: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    return given * (1 - torch.nn.functional.one_hot(channels, given.shape[1]))[:, :, None, None]


def unit_tensor(values: torch.Tensor) -> torch.Tensor:
    values = values.detach().clamp(min=0)
    return values / values.max()
