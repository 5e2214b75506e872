"""Files of heatmaps and tensors, damaged at random: the named error, or the same bits. Never other numbers."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import FormatError, InputError, Notice
from torchpeek.hooks.recording.keep import Captured
from torchpeek.store.tensor_files import CHECKSUM

EACH = 150  # damages of each kind of file


def heatmaps() -> dict[str, tp.Heatmap]:
    """Heatmaps of several dtypes, layers, questions and options."""
    torch.manual_seed(0)
    model, x = PooledNet(), torch.randn(2, 3, 6, 5)
    loaded = tp.LoadedModel(model, class_names=[f"näme {n}" for n in range(5)], spec="test:net", weights="random")
    half = tp.explain(model, x, target=1)
    return {
        "classes": tp.explain(loaded, x, method="hirescam", target=[[0, 1], [2, 3]]),
        "double": tp.explain(PooledNet().double(), x.double(), target=tp.targets.ClassProbability()),
        "layers": tp.explain(model, x, layer=["features.0", "act"], fuse="mean").positive().unit(),
        "contrast": tp.explain(model, x, target=tp.targets.Contrast()),
        "tensor option": tp.explain(model, x, method="integrated-gradients", baseline=torch.rand(3, 1, 1), steps=2),
        "half": tp.Heatmap(half.values.half(), half.scores, half.question, half.provenance),
        "one of a list": tp.explain(model, [x[:1], x[1:, :, :4]])[1],
    }


HEATMAPS = heatmaps()
TENSORS = {
    "float": torch.arange(12.0).view(3, 4),
    "bfloat16": torch.arange(7.0).bfloat16(),
    "bool": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j, 3j]),
    "number": torch.tensor(3.5, dtype=torch.float64),
    "none": torch.empty(0, 2),
}


def parts_of(heatmap: tp.Heatmap) -> tuple[Any, ...]:
    """Everything in a heatmap, with bits in place of numbers."""
    options = {
        name: bits(each) if isinstance(each, Tensor) else each for name, each in heatmap.provenance.options.items()
    }
    others = {name: getattr(heatmap.provenance, name) for name in heatmap.provenance.__dataclass_fields__}
    question = {name: bits(each) if isinstance(each, Tensor) else each for name, each in vars(heatmap.question).items()}
    kind = type(heatmap.question)
    return bits(heatmap.values), bits(heatmap.scores), kind, question, {**others, "options": options}


def bits(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    plain = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    return str(tensor.dtype), tuple(tensor.shape), plain.numpy().tobytes()


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, deleted, inserted, cut off or added, in the header as often as in the rest."""
    start = 8 + int.from_bytes(data[:8], "little")
    place = draw.choice([draw.randrange(8), draw.randrange(8, start), draw.randrange(start - 1, len(data))])
    length = draw.choice([1, 1, 1, 2, 8, 64])
    match draw.randrange(8):
        case 0 | 1:
            return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
        case 2:
            return data[:place] + draw.randbytes(length) + data[place + length :]
        case 3:
            return data[:place] + data[place + length :]
        case 4:
            return data[:place] + draw.randbytes(length) + data[place:]
        case 5:
            return data[:place]
        case 6:  # another digit or letter, so that the header stays JSON
            return data[:place] + draw.choice(b'0123456789abcFIU"]').to_bytes() + data[place + 1 :]
        case _:
            other = draw.randrange(len(data))
            return data[:place] + data[other : other + length] + data[place + length :]


def check(data: bytes, file: Path, load: Callable[[], Any], original: Any) -> bool:
    """Write and load. Returns whether it was refused; fails where it loads as something else."""
    file.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Notice)
        try:
            found = load()
        except FormatError as error:
            found = str(error)
    if isinstance(found, str):
        assert file.name in found
    else:
        assert found == original
    return isinstance(found, str)


@pytest.mark.parametrize("kind", HEATMAPS)
def test_heatmaps(kind, tmp_path) -> None:
    file, draw = tmp_path / "map.safetensors", random.Random(kind)
    tp.save(HEATMAPS[kind], file)
    data, original = file.read_bytes(), parts_of(tp.load(file))
    assert original == parts_of(HEATMAPS[kind])
    refused = [
        check(each, file, lambda: parts_of(tp.load(file)), original)
        for each in (damaged(data, draw) for _ in range(EACH))
        if each != data
    ]
    assert sum(refused) > EACH * 0.8


@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_a_stream(kind, tmp_path) -> None:
    stream, draw = tp.TensorStream(tmp_path), random.Random(kind)
    stream(Captured("layer.1", "output", 3, TENSORS[kind]))
    (file,) = tmp_path.glob("*.safetensors")
    data = file.read_bytes()

    def load() -> Any:
        [each] = stream
        return each.layer, each.part, each.order, bits(each.tensor)

    original = load()
    refused = [check(each, file, load, original) for each in (damaged(data, draw) for _ in range(EACH)) if each != data]
    assert sum(refused) > EACH * 0.8


def test_the_metadata_alone_are_checked_too(tmp_path) -> None:
    """read() looks for the files of a layer by their headers."""
    stream = tp.TensorStream(tmp_path)
    stream(Captured("layer.1", "output", 3, torch.ones(2)))
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes().replace(b"layer.1", b"layer.7"))
    with pytest.raises(FormatError, match="checksum"):
        stream.read("layer.7")


def split(file: Path) -> tuple[bytes, bytes]:
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return data[:start], data[start:]


def test_files_mixed_up(tmp_path) -> None:
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    heatmap = HEATMAPS["classes"]
    tp.save(heatmap, one)
    tp.save(tp.Heatmap(-heatmap.values, heatmap.scores, heatmap.question, heatmap.provenance), two)
    (header, data), (other_header, other_data) = split(one), split(two)
    for mixed in (header + other_data, other_header + data, header + data + other_header + other_data, 2 * data, b""):
        one.write_bytes(mixed)
        with pytest.raises(FormatError, match=r"one\.safetensors"):
            tp.load(one)


def rewritten(file: Path, changed: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """The file as an older torchpeek wrote it, without a checksum, with a change."""
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    metadata.pop(CHECKSUM)
    about = json.loads(metadata["torchpeek"])
    about["format"] = 1
    about["provenance"].pop("inputs")
    changed(about, tensors)
    save_file(tensors, file, {"torchpeek": json.dumps(about)})


class TestWithoutChecksum:
    def test_it_loads_with_a_notice(self, tmp_path) -> None:
        file, heatmap = tmp_path / "map.safetensors", HEATMAPS["contrast"]
        tp.save(heatmap, file)
        rewritten(file, lambda about, tensors: None)
        with pytest.warns(Notice, match="has no checksum"):
            found = tp.load(file)
        assert found.provenance.inputs == ()
        assert parts_of(found)[:-1] == parts_of(heatmap)[:-1]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tp.save(heatmap, file)
            tp.load(file)

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda a, t: t.update(scores=t["scores"][:1]), "its scores are"),
            (lambda a, t: t.update(labels=t["labels"].T.contiguous()[:1]), "its labels are"),
            (lambda a, t: t.update(labels=t["labels"].float()), "its labels are of torch.float32"),
            (lambda a, t: t.update(others=t["others"][:, :, 0].contiguous()), "its others are"),
            (lambda a, t: t.update(values=t["values"].int()), "its values are of torch.int32"),
            (lambda a, t: t.update(values=t["values"].flatten().contiguous()), "for values"),
            (lambda a, t: t.pop("scores"), "scores"),
            (lambda a, t: a.pop("question"), "question"),
            (lambda a, t: a.update(provenance=[]), "damaged"),
            (lambda a, t: a.update(format=3), "newer torchpeek"),
            (lambda a, t: a["provenance"].update(model=3), "3 is no text"),
            (lambda a, t: a["provenance"].update(steps=[3]), "3 is no text"),
            (lambda a, t: a["provenance"].update(class_names={"a": "b"}), "damaged"),
            (lambda a, t: a["provenance"].update(options=[1]), "damaged"),
            (lambda a, t: a["provenance"].update(unknown=1), "unknown"),
            (lambda a, t: a["provenance"].update(inputs=["a"]), "digests of 1 inputs"),
            (lambda a, t: a["provenance"].update(inputs=[1]), "1 is no text"),
            (lambda a, t: a.update(format=2), "it has no checksum"),
            (lambda a, t: a["question"].update(strength="a"), "damaged"),
            (lambda a, t: a["question"].update(part=1), "damaged"),
            (lambda a, t: (a["question"].pop("strength"), a["question"].update(kind="x")), "a score of the kind 'x'"),
        ],
        ids=range(21),
    )
    def test_parts_that_do_not_fit(self, change, why, tmp_path) -> None:
        tp.save(HEATMAPS["contrast"], tmp_path / "map.safetensors")
        rewritten(tmp_path / "map.safetensors", change)
        with pytest.raises(FormatError, match=why):
            tp.load(tmp_path / "map.safetensors")

    def test_such_a_heatmap_is_not_saved(self, tmp_path) -> None:
        heatmap = HEATMAPS["classes"]
        wrong = tp.Heatmap(heatmap.values, heatmap.scores[:1], heatmap.question, heatmap.provenance)
        with pytest.raises(InputError, match="cannot be saved: its scores are"):
            tp.save(wrong, tmp_path / "map.safetensors")


@pytest.mark.parametrize(
    "about",
    [
        "[" * 1_000_000,
        "[" * 500 + "]" * 500,
        '{"format": 1, "question": {"kind": "logit"}, "provenance": ' + '{"a":' * 400 + "1" + "}" * 401,
        "9" * 10_000,
        "null",
        "",
    ],
    ids=range(6),
)
def test_hostile_metadata(about, tmp_path) -> None:
    save_file({"values": torch.zeros(1)}, tmp_path / "map.safetensors", {"torchpeek": about})
    with pytest.raises(FormatError, match=r"map\.safetensors"):
        tp.load(tmp_path / "map.safetensors")


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_gigabytes(length, tmp_path) -> None:
    with open(tmp_path / "map.safetensors", "wb") as file:
        file.write(length.to_bytes(8, "little"))
        file.truncate(min(length + 8, 1 << 41))  # sparse
    with pytest.raises(FormatError, match=r"map\.safetensors"):
        tp.load(tmp_path / "map.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 0]}},
        {"a": {"dtype": "F99", "shape": [0], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["x", "y"]}},
        {"a": 3},
        [],
    ],
    ids=range(7),
)
def test_hostile_headers(header, tmp_path) -> None:
    if isinstance(header, dict):
        header["__metadata__"] = {"torchpeek": "{}"}
    text = json.dumps(header).encode()
    (tmp_path / "map.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(FormatError, match=r"map\.safetensors"):
        tp.load(tmp_path / "map.safetensors")


def test_a_file_that_is_replaced_or_cut_while_its_heatmap_is_used(tmp_path) -> None:
    file, heatmap = tmp_path / "map.safetensors", HEATMAPS["classes"]
    tp.save(heatmap, file)
    loaded = tp.load(file)
    tp.save(HEATMAPS["double"], file)
    assert parts_of(loaded) == parts_of(heatmap)
    loaded = tp.load(file)
    file.write_bytes(b"")  # memory that is mapped to the file would end the process
    assert parts_of(loaded) == parts_of(HEATMAPS["double"])
