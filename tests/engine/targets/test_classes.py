"""Class targets: which labels a request gives on a clean pass, and which requests are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from torchpeek.engine.targets import Classes, ClassesPerSample, ClassProbability, Predicted, TopClasses, as_target
from torchpeek.errors import AmbiguousClass, ClassNotFound, TargetError

OUTPUT = torch.tensor([[1.0, 3.0, 2.0], [5.0, -1.0, 0.0]])
NAMES = ["tench, Tinca tinca", "Egyptian cat", "crane"]


def labels(target, names=NAMES) -> list[list[int]]:
    return as_target(target, names).bind(OUTPUT).labels.tolist()


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [[1], [0]]),
        (Predicted(), [[1], [0]]),
        (2, [[2], [2]]),
        (np.int64(2), [[2], [2]]),
        (torch.tensor(2), [[2], [2]]),
        ("egyptian CAT", [[1], [1]]),
        ("tinca tinca", [[0], [0]]),
        ([0, 2], [[0], [2]]),
        (["crane", 0], [[2], [0]]),
        ([[0, 1], [2, 1]], [[0, 1], [2, 1]]),
        (torch.tensor([[0, 1], [2, 1]]), [[0, 1], [2, 1]]),
        (np.array([0, 2]), [[0], [2]]),
        (TopClasses(2), [[1, 2], [0, 2]]),
        (Classes([2, "Egyptian cat"]), [[2, 1], [2, 1]]),
        (ClassProbability("crane"), [[2], [2]]),
    ],
)
def test_labels(target, expected) -> None:
    assert labels(target) == expected


def test_scores_are_logits_or_probabilities() -> None:
    rows = torch.tensor([0, 1, 1])
    output = torch.tensor([[0.0, 1.0, 2.0], [4.0, 0.0, 0.0], [7.0, 8.0, 9.0]])
    question = as_target([2, 0]).bind(OUTPUT)
    assert question(output, rows).tolist() == [[2.0], [4.0], [7.0]]
    probability = ClassProbability([2, 0]).bind(OUTPUT)(output, rows)
    assert float(probability[0]) == pytest.approx(np.exp(2) / (1 + np.e + np.exp(2)))


@pytest.mark.parametrize("wrapped", [{"logits": OUTPUT}, type("Output", (), {"logits": OUTPUT})()])
def test_logits_in_what_a_model_returned(wrapped) -> None:
    assert Predicted().bind(wrapped).labels.tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        (3, ClassNotFound, "no class 3: the model has 3 classes, 0 to 2"),
        (-1, ClassNotFound, "no class -1"),
        ("egiptian cat", ClassNotFound, "closest: 'Egyptian cat'"),
        (True, TargetError, "allowed"),
        (1.5, TargetError, "float"),
        (torch.tensor([0.5, 1.0]), TargetError, "integers"),
        ([0, 1, 2], TargetError, "batch of 2"),
        ([[0, 1], [2]], TargetError, r"rows of \[1, 2\]"),
        ([0, [1]], TargetError, "mixes"),
        ([], TargetError, "batch of 2"),
        (TopClasses(4), TargetError, "k goes from 1"),
        (10**30, ClassNotFound, "no model has as many"),
        (np.array(["cat"]), ClassNotFound, "closest: 'Egyptian cat'"),
        (np.array([0.5, 1.5]), TargetError, "an index or a name"),
        (TopClasses, TargetError, "allowed"),
        ({"class": 1}, TargetError, "dict"),
    ],
)
def test_what_cannot_be_asked(target, error, words) -> None:
    with pytest.raises(error, match=words):
        labels(target)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TopClasses(0),
        lambda: TopClasses("a"),
        lambda: TopClasses(2.0),
        lambda: Classes([]),
        lambda: Classes("cat"),
        lambda: Classes(3),
        lambda: ClassesPerSample([1, 2]),
    ],
)
def test_targets_that_cannot_be_made(make) -> None:
    with pytest.raises(TargetError):
        make()


def test_names_that_are_ambiguous_or_missing() -> None:
    with pytest.raises(AmbiguousClass, match=r"0 \(crane\), 2 \(crane\)"):
        labels("crane", ["crane", "cat", "crane"])
    with pytest.raises(AmbiguousClass):
        labels("maillot", ["maillot, tank suit", "maillot, swimsuit", "x"])
    assert labels("maillot", ["maillot", "maillot, tank suit", "x"]) == [[0], [0]]  # the whole name wins
    with pytest.raises(ClassNotFound, match="without class names"):
        labels("cat", None)


@pytest.mark.parametrize("output", [torch.zeros(3), torch.zeros(1, 2, 3), (OUTPUT, OUTPUT), {"out": OUTPUT[0]}, None])
def test_outputs_without_class_scores(output) -> None:
    with pytest.raises(TargetError, match="class scores are read from"):
        Predicted().bind(output)


ONE_HOT = torch.tensor([[0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    "target",
    [
        ONE_HOT,
        ONE_HOT.to(torch.uint8),
        ONE_HOT.float(),
        ONE_HOT.bool(),
        ONE_HOT * 0.9 + 0.05,  # smoothed labels
        ONE_HOT.numpy(),
        ONE_HOT.double().numpy(),
        ONE_HOT.tolist(),
        ONE_HOT.bool().tolist(),
        ONE_HOT.double().tolist(),
        tuple(map(tuple, ONE_HOT.tolist())),
        torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0]]),  # of a model with another number of classes
        ONE_HOT[:1],  # for another number of samples
        ClassProbability(ONE_HOT),
        ClassProbability(ONE_HOT.float()),
    ],
    ids=lambda each: f"{type(each).__name__}",
)
def test_one_hot_labels(target) -> None:
    with pytest.raises(TargetError, match=r"one-hot.*onehot\.argmax\(1\)"):
        labels(target)
    assert labels(ONE_HOT.argmax(1)) == [[1], [2]]


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ([[1, 1, 0], [0, 1, 1]], r"onehot\.nonzero\(\)\[:, 1\]\.view\(-1, 2\)"),
        ([[1, 1, 0], [0, 0, 1]], "the same number K for every sample"),
        ([[0, 0, 0], [0, 1, 1]], "the same number K for every sample"),
        ([[1, 1], [0, 1]], "the same number K for every sample"),
        ([[0, 0], [0, 0]], "the same number K for every sample"),
        (Classes([0, 0, 1]), "argmax"),
    ],
)
def test_multi_hot_labels(target, advice) -> None:
    with pytest.raises(TargetError, match=f"class 0 or 1 several times.*{advice}"):
        labels(target)


def test_one_hot_labels_of_a_single_sample() -> None:
    with pytest.raises(TargetError, match=r"onehot\.argmax\(\)"):
        as_target([0, 0, 1]).bind(OUTPUT[:1])


@pytest.mark.parametrize(
    "target",
    [
        np.array([[0, 1], [1, 0]]),
        torch.tensor([[0, 1], [0, 1]]),
        [torch.tensor([0, 1]), torch.tensor([1, 0])],
        ClassProbability(torch.tensor([[1, 0], [1, 0]])),
    ],
    ids=str,
)
def test_one_hot_labels_of_a_binary_classifier(target) -> None:
    """[0, 1] in a tensor may also name both classes, so it is refused where the model has no others."""
    binary = torch.tensor([[0.1, 0.7], [0.9, 0.1]])
    with pytest.raises(TargetError, match=r"onehot\.argmax\(1\); for both classes give .*Classes\(\[0, 1\]\)"):
        as_target(target).bind(binary)
    assert Classes([0, 1]).bind(binary).labels.tolist() == [[0, 1], [0, 1]]
    assert as_target([[0, 1], [1, 0]]).bind(binary).labels.tolist() == [[0, 1], [1, 0]]  # lists of classes
    assert as_target(torch.tensor([[0, 1], [1, 0]]).argmax(1)).bind(binary).labels.tolist() == [[1], [0]]


def test_a_list_of_tensors() -> None:
    assert labels([torch.tensor(2), torch.tensor(0)]) == [[2], [0]]
    assert labels([torch.tensor([2, 1]), torch.tensor([0, 1])]) == [[2, 1], [0, 1]]
    with pytest.raises(TargetError, match="one-hot"):
        labels(list(ONE_HOT))


@pytest.mark.parametrize(
    "target",
    [[[0, 1], [1, 0]], [[0, 1], [0, 1]], [[0], [1]], [0, 1], [1, 1], [[2, 2], [0, 0]], [[0, 1], [2, 2]]],
)
def test_lists_of_classes_0_and_1(target) -> None:
    """Without repeats they name the first two classes of several."""
    assert labels(target) == torch.tensor(target).view(2, -1).tolist()
