"""Which class a label of a data set stands for."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from torchpeek.errors import InputError
from torchpeek.runs import labels
from torchpeek.runs.labels import Classes, FoundLabels, class_folders, known_synsets, parsed_label

NAMES = ["tench, Tinca tinca", "crane", "crane", "tiger cat", "stop sign, sign"]
SYNSETS = ["n01440764", "n02012849", "n03126707", "n02123159", "n06794110"]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("tench", 0),
        ("Tinca Tinca", 0),
        ("tench, Tinca tinca", 0),
        ("tiger_cat", 3),
        ("TIGER-CAT", 3),
        ("n02123159", 3),
        ("n03126707", 2),
        ("crane", None),  # two classes
        ("tiger", None),
        ("n00000001", None),
    ],
)
def test_names_and_synsets(name: str, index: int | None) -> None:
    assert Classes(NAMES, SYNSETS).of_name(name) == index


def test_folders_are_classes_only_where_all_of_them_are() -> None:
    assert class_folders(["tench", "tiger_cat"], NAMES, None) is not None
    assert class_folders(["tench", "lion"], NAMES, None) is None
    assert class_folders([], NAMES, None) is None
    assert class_folders(["tench"], None, None) is None


def test_synset_folders() -> None:
    some = class_folders(SYNSETS[2:4], NAMES, SYNSETS)
    assert some is not None
    assert (some.of("n02123159/x.jpg"), some.words) == ((3, "n02123159"), "the folders are synset numbers")
    assert class_folders(SYNSETS[2:4], NAMES, None) is None
    as_many = class_folders(["n03", *SYNSETS], NAMES, None)
    assert as_many is None
    as_many = class_folders(SYNSETS, NAMES, None)  # without a table: sorted, as torchvision's ImageFolder numbers them
    assert as_many is not None
    assert as_many.labels == {synset: index for index, synset in enumerate(sorted(SYNSETS))}
    assert "sorted" in as_many.words


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((3, 3), ("3", 3), (" 3 ", 3), (3.0, 3), ("3.0", 3), (b"3", 3)),
        *((None, None), ("", None), (-1, None), ("-1", None), (float("nan"), None)),
        *(("cat", "cat"), ("3.5", "3.5"), ("12345678901234567890", "12345678901234567890")),
    ],
)
def test_what_a_data_set_says(value: object, label: object) -> None:
    parsed = parsed_label(value, "row 1")
    assert (parsed, type(parsed)) == (label, type(label))


@pytest.mark.parametrize("value", [True, 3.5, [1], {"label": 1}, float("inf")])
def test_what_is_no_label_names_the_row(value: object) -> None:
    with pytest.raises(InputError, match="row 7"):
        parsed_label(value, "row 7")


def test_nothing_said_is_nothing_told() -> None:
    found = FoundLabels(Classes(NAMES))
    assert found.added(None, "row 0") == (None, None)
    assert found.words == ""


@pytest.fixture
def timm_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What timm has of ImageNet, for five classes."""
    folder = tmp_path / "timm" / "data" / "_info"
    folder.mkdir(parents=True)
    (folder / "imagenet_synsets.txt").write_text("\n".join(SYNSETS) + "\n")
    lemmas = zip(SYNSETS, ["tench, Tinca tinca", "crane", "crane", "tiger cat", "street sign"], strict=True)
    (folder / "imagenet_synset_to_lemma.txt").write_text("".join(f"{synset}\t{lemma}\n" for synset, lemma in lemmas))
    spec = SimpleNamespace(origin=str(tmp_path / "timm" / "__init__.py"))
    monkeypatch.setattr(labels.importlib.util, "find_spec", lambda name: spec)
    return folder


def test_synsets_are_those_of_a_model_with_the_same_names_alone(timm_files: Path) -> None:
    assert known_synsets([*NAMES[:4], "street sign"]) == SYNSETS
    assert known_synsets(["a", "b", "c", "d", "e"]) is None
    assert known_synsets(NAMES[:4]) is None
    assert known_synsets(None) is None
    (timm_files / "imagenet_synset_to_lemma.txt").unlink()
    assert known_synsets([*NAMES[:4], "street sign"]) is None


def test_synsets_of_the_installed_timm_fit_torchvision() -> None:
    before = "timm" in sys.modules
    pytest.importorskip("torchvision")
    if labels.importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    from torchvision.models import MobileNet_V2_Weights

    names = MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
    synsets = known_synsets(names)
    assert synsets is not None
    assert (len(synsets), names[synsets.index("n02123159")]) == (1000, "tiger cat")
    assert ("timm" in sys.modules) == before  # its import takes seconds
