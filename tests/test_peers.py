"""Agreement with other tools where they are right, and the cases where they are not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import torchpeek as tp
from networks import PooledNet, SplitNet

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


class TestWhereTheyAreWrong:
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


def unit_tensor(values: torch.Tensor) -> torch.Tensor:
    values = values.detach().clamp(min=0)
    return values / values.max()
