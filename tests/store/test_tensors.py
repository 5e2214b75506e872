"""TensorStream: recorded tensors are written to a folder and come back bit for bit."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save_file
from torch import Tensor, nn

import torchpeek as tp
from networks import PooledNet
from torchpeek.errors import FolderError, FormatError, InputError, LayerNotFound
from torchpeek.hooks.recording.keep import Captured
from torchpeek.store import folder as folder_of_store
from torchpeek.store import tensor_bytes
from torchpeek.store import tensors as tensors_of_store

KEY = "torchpeek-stream"  # in the header of every file


@pytest.fixture
def stream(tmp_path: Path) -> tp.TensorStream:
    return tp.TensorStream(tmp_path / "stream")


def to(stream: Callable[[Captured], None]) -> tp.keep.Callback:
    return tp.keep.Callback(stream)


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """All of a tensor's values, so that NaN equals NaN and 0 is not -0."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten()
    return tensor.dtype, tuple(tensor.shape), bytes(plain.view(torch.uint8).tolist())


def captured(tensor: Tensor, layer: str = "act", part: str = "output", order: int = 0) -> Captured:
    return Captured(layer, part, order, tensor)


class Nested(nn.Module):
    """Returns a dict with a list of what an LSTM returned, which is a tuple in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5)

    def forward(self, x: Tensor) -> dict[str, object]:
        y, (h, c) = self.lstm(x)
        return {"sequence": y, "ends": [h, None, c * 2]}


class TestRecorded:
    def test_outputs_inputs_and_gradients_in_the_order_in_which_they_came(self, stream) -> None:
        model, x = PooledNet().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
        layers = ["act", "head"]
        with tp.record(model, layers, inputs=True, gradients=True, passes="all", snapshot="clone") as tape:
            model(x).sum().backward()
        with tp.record(model, layers, inputs=True, gradients=True, keep=to(stream)):
            model(x).sum().backward()
        assert [(each.layer, each.part, each.order) for each in stream] == [
            ("act", "input.0", 0),
            ("act", "output", 0),
            ("head", "input.0", 1),
            ("head", "output", 1),
            ("head", "grad_output", 1),
            ("head", "grad_input.0", 1),
            ("act", "grad_output", 0),
            ("act", "grad_input.0", 0),
        ]
        for layer in layers:
            call = tape[layer]
            expected = (call.input, call.output, call.grad_output, call.grad_input)
            for part, tensor in zip(("input.0", "output", "grad_output", "grad_input.0"), expected, strict=True):
                (found,) = stream.read(layer, part)
                assert bits(found) == bits(tensor), (layer, part)

    def test_nested_outputs_by_path(self, stream) -> None:
        model, x = Nested(), torch.randn(2, 3, 4)
        with torch.no_grad(), tp.record(model, [model, "lstm"], keep=to(stream)):
            out = model(x)
        paths = [(each.layer, each.part) for each in stream]
        lstm, own = ["output.0", "output.1.0", "output.1.1"], ["output.sequence", "output.ends.0", "output.ends.2"]
        assert paths == [*(("lstm", part) for part in lstm), *(("", part) for part in own)]
        assert bits(next(stream.read("", "output.ends.2"))) == bits(out["ends"][2])
        assert bits(next(stream.read("lstm", "output.1.1"))) == bits(out["ends"][2] / 2)

    @pytest.mark.parametrize("passes", ["last", "all"])
    def test_every_pass(self, stream, passes) -> None:
        model = PooledNet().eval()
        batches = torch.randn(12, 1, 3, 4, 4)
        with torch.no_grad(), tp.record(model, ["features.0", "act"], passes=passes, keep=to(stream)):
            for batch in batches:
                model(batch)
        assert len(stream) == 24
        with torch.no_grad():
            expected = [model.act(model.features(batch)) for batch in batches]
        assert [bits(each) for each in stream.read("act")] == [bits(each) for each in expected]
        assert [each.layer for each in stream] == ["features.0", "act"] * 12

    def test_before_what_runs_next_writes_in_place(self, stream) -> None:
        model, x = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True)), torch.randn(1, 3, 4, 4)
        with torch.no_grad():
            before = model[0](x)
            with tp.record(model, "0", keep=to(stream)):
                model(x)
        assert (before < 0).any()
        assert bits(next(stream.read("0"))) == bits(before)

    def test_layers_whose_names_make_one_file_name(self, stream) -> None:
        for layer, value in (("Block A", 1.0), ("block/a", 2.0), ("block-a", 3.0), ("x" * 400, 4.0), ("層.1", 5.0)):
            stream(captured(torch.tensor(value), layer))
        assert [float(next(stream.read(layer))) for layer in ("Block A", "block/a", "block-a")] == [1, 2, 3]
        assert [(each.layer, float(each.tensor)) for each in stream][3:] == [("x" * 400, 4), ("層.1", 5)]

    @pytest.mark.parametrize("gradients", [False, True])
    def test_nothing_stays_in_memory(self, stream, gradients) -> None:
        model, shape = PooledNet(channels=7), (1, 7, 4, 4)  # a shape that no other tensor has
        with tp.record(model, ["act", "head"], inputs=True, gradients=gradients, passes="all", keep=to(stream)) as tape:
            for _ in range(5):
                model(torch.randn(1, 3, 4, 4)).sum().backward()
                gc.collect()
                living = [each for each in gc.get_objects() if type(each) is Tensor and each.shape == shape]
                assert len(living) <= gradients  # that of the last pass belongs to its graph
                del living
        assert tape.nbytes == 0
        assert tape["act"][-1].output is None
        assert len(list(stream.read("act"))) == 5
        assert sum(each.layer == "act" and each.part == "grad_output" for each in stream) == 5 * gradients

    def test_replicas_in_threads(self, stream, monkeypatch) -> None:
        def slowly(tensors, about):
            time.sleep(0.05)
            return tensor_bytes(tensors, about)

        monkeypatch.setattr(tensors_of_store, "tensor_bytes", slowly)
        model = PooledNet()
        with tp.record(model, ["head"], passes="all", keep=to(stream)):
            threads = [
                threading.Thread(target=model._replicate_for_data_parallel(), args=(torch.full((1, 3, 4, 4), value),))
                for value in (1.0, 2.0, 3.0, 4.0)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(stream) == 4
        assert len({bits(each) for each in stream.read("head")}) == 4


BIG = torch.randn(100, 1000)
TENSORS = {
    "half": torch.tensor([0.1, -0.0, float("inf"), float("nan"), 6e-8]).half(),
    "bfloat16": torch.tensor([0.1, -0.0, float("-inf"), float("nan"), 1e-40]).bfloat16(),
    "double": torch.tensor([0.1, 5e-324, -0.0]).double(),
    "bool": torch.tensor([[True, False, True]]),
    "int64": torch.tensor([2**62, -1]),
    "complex64": torch.tensor([1 + 2j, -3.5j]),
    "0-d": torch.tensor(3.5),
    "empty": torch.empty(0, 4, 2),
    "transposed": BIG[:3, :4].t(),
    "steps": BIG[::7, 5:40:9],
    "expanded": torch.tensor([1.0, 2.0])[:, None].expand(2, 3),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "needs gradients": torch.ones(2, requires_grad=True) * 3,
    "conjugate": torch.tensor([1 + 2j, -3.5j]).conj(),
    "negated": torch._neg_view(torch.tensor([1.0, 2.0])),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_any_kind_of_tensor_comes_back(stream, kind) -> None:
    stream(captured(TENSORS[kind]))
    (found,) = stream.read("act")
    assert bits(found) == bits(TENSORS[kind])
    assert bits(tensors_of(tensor_bytes({"a": TENSORS[kind]}, {}))["a"]) == bits(TENSORS[kind])
    assert not found.requires_grad


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, dtype=torch.complex128), "complex128; take its .to"),
        (torch.eye(2).to_sparse(), "torch.sparse_coo; take its .to_dense"),
        (torch.empty(2, device="meta"), "meta device"),
    ],
    ids=["complex128", "sparse", "meta"],
)
def test_what_safetensors_cannot_hold(stream, tmp_path, tensor, message) -> None:
    with pytest.raises(InputError, match=message):
        stream(captured(tensor))
    assert list((tmp_path / "stream").iterdir()) == []


def test_a_view_of_a_large_storage_takes_only_its_own_room(stream, tmp_path) -> None:
    stream(captured(BIG[2, 5:9]))
    assert bits(next(stream.read("act"))) == bits(BIG[2, 5:9])
    (file,) = (tmp_path / "stream").iterdir()
    assert file.stat().st_size < 500


def test_what_is_read_is_the_readers_own(stream) -> None:
    stream(captured(torch.arange(4.0)))
    next(stream.read("act")).zero_()
    assert next(stream.read("act")).tolist() == [0, 1, 2, 3]


class TestReading:
    def test_the_only_input_needs_no_number(self, stream) -> None:
        for part in ("input.0", "output"):
            stream(captured(torch.ones(1), "act", part))
        stream(captured(torch.ones(1), "add", "input.0"))
        stream(captured(torch.ones(1), "add", "input.1"))
        assert len(list(stream.read("act", "input"))) == 1
        with pytest.raises(
            InputError, match=r"no 'input' of layer 'add' in this stream; there are 'input.0', 'input.1'"
        ):
            stream.read("add", "input")

    def test_what_is_not_there(self, stream) -> None:
        with pytest.raises(LayerNotFound, match="no layer 'act' in this stream; there are 0"):
            stream.read("act")
        stream(captured(torch.ones(1), "features.0"))
        with pytest.raises(LayerNotFound, match=r"closest: 'features.0'"):
            stream.read("features0")
        with pytest.raises(InputError, match=r"no 'grad_output' .* there are 'output'"):
            stream.read("features.0", "grad_output")

    def test_the_tensors_of_other_layers_stay_on_disk(self, stream, monkeypatch) -> None:
        for n, layer in enumerate(["a", "b", "a"]):
            stream(captured(torch.tensor(n), layer))
        read: list[str] = []
        whole = tensors_of_store._captured
        monkeypatch.setattr(tensors_of_store, "_captured", lambda file: read.append(file.name) or whole(file))
        assert [int(each) for each in stream.read("a")] == [0, 2]
        assert read == ["00000000-a-output.safetensors", "00000002-a-output.safetensors"]

    def test_more_than_eight_digits(self, stream, tmp_path) -> None:
        (tmp_path / "stream" / "99999998-act-output.safetensors").touch()
        opened = tp.TensorStream.opened(tmp_path / "stream")
        for value in (1, 2, 3):
            if value == 2:
                (tmp_path / "stream" / "99999998-act-output.safetensors").unlink()
            opened(captured(torch.tensor(value)))
        assert [int(each) for each in opened.read("act")] == [1, 2, 3]


class TestAtomicWrites:
    @pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
    def test_an_error_in_the_middle_of_a_file(self, stream, tmp_path, monkeypatch, error) -> None:
        stream(captured(torch.zeros(3)))
        seen: list[int] = []

        def breaking(handle: int, mode: str) -> object:
            file = fdopen(handle, mode)

            class Half:
                def __enter__(self) -> Half:
                    return self

                def __exit__(self, *_: object) -> None:
                    file.close()

                def write(self, data: bytes) -> None:
                    file.write(data[: len(data) // 2])
                    file.flush()
                    seen.append(len(tp.TensorStream.opened(tmp_path / "stream")))  # what another process sees now
                    raise error

            return Half()

        fdopen = os.fdopen
        with monkeypatch.context() as patched:
            patched.setattr(folder_of_store.os, "fdopen", breaking)
            with pytest.raises(type(error)):
                stream(captured(torch.ones(3)))
        assert seen == [1]
        assert len(list((tmp_path / "stream").iterdir())) == 1
        stream(captured(torch.full((3,), 2.0)))
        assert [each.tolist() for each in stream.read("act")] == [[0, 0, 0], [2, 2, 2]]

    def test_an_error_names_the_layer_and_leaves_the_recording_usable(self, stream, monkeypatch) -> None:
        model, x = PooledNet(), torch.randn(1, 3, 4, 4)
        with tp.record(model, "act", keep=to(stream)):
            with monkeypatch.context() as patched:
                patched.setattr(folder_of_store.os, "replace", lambda *_, **__: 1 / 0)
                with pytest.raises(ZeroDivisionError) as raised:
                    model(x)
            assert "layer 'act'" in raised.value.__notes__[0]
            assert len(stream) == 0
            model(x)
        assert len(stream) == 1


class TestFolder:
    def test_reopened_it_goes_on(self, stream, tmp_path) -> None:
        for value in range(11):
            stream(captured(torch.tensor(value)))
        for value in range(11, 13):
            tp.TensorStream.opened(tmp_path / "stream")(captured(torch.tensor(value)))
        assert [int(each) for each in tp.TensorStream.opened(tmp_path / "stream").read("act")] == list(range(13))
        assert [int(each) for each in stream.read("act")] == list(range(13))

    def test_an_empty_one_is_fine(self, tmp_path) -> None:
        assert list(tp.TensorStream(tmp_path)) == []
        opened = tp.TensorStream.opened(tmp_path)
        opened(captured(torch.ones(1)))
        assert len(opened) == 1

    def test_refusals(self, stream, tmp_path) -> None:
        stream(captured(torch.ones(1)))
        with pytest.raises(FolderError, match=r"not empty .* TensorStream.opened\(.*\) to read it") as raised:
            tp.TensorStream(tmp_path / "stream")
        assert "--" not in str(raised.value)
        with pytest.raises(FormatError, match=r"nowhere: no such folder"):
            tp.TensorStream.opened(tmp_path / "nowhere")
        (tmp_path / "file").write_text("text")
        with pytest.raises(FolderError, match="is a file"):
            tp.TensorStream(tmp_path / "file")
        with pytest.raises(FormatError):
            tp.TensorStream.opened(tmp_path / "file")

    @pytest.mark.parametrize(
        "damage",
        [
            lambda file: file.write_bytes(file.read_bytes()[:-3]),
            lambda file: file.write_bytes(b""),
            lambda file: file.write_bytes(b"not a tensor at all"),
            lambda file: save_file({"tensor": torch.ones(2)}, file),
            lambda file: save_file({"other": torch.ones(2)}, file, {KEY: '{"layer": "a", "part": "b", "order": 0}'}),
            lambda file: save_file({"tensor": torch.ones(2)}, file, {KEY: '{"layer": "a"}'}),
            lambda file: save_file({"tensor": torch.ones(2)}, file, {KEY: "{"}),
            lambda file: save_file({"tensor": torch.ones(2)}, file, {KEY: "[1]"}),
        ],
    )
    def test_a_damaged_or_foreign_file_is_named(self, stream, tmp_path, damage) -> None:
        for value in range(3):
            stream(captured(torch.tensor(value)))
        _, broken, _ = sorted((tmp_path / "stream").iterdir())
        damage(broken)
        reading = iter(stream)
        assert int(next(reading).tensor) == 0
        with pytest.raises(FormatError, match=broken.name):
            next(reading)

    def test_files_that_change_places(self, stream, tmp_path) -> None:
        """Each is whole in itself; the tensors would come in another order, or at another place in it."""
        for value in range(4):
            stream(captured(torch.tensor(value)))
        first, second, _, last = sorted((tmp_path / "stream").iterdir())
        first.rename(tmp_path / "aside")
        second.rename(first)
        (tmp_path / "aside").rename(second)
        for read in (list, lambda stream: stream.read("act")):
            with pytest.raises(FormatError, match=f"{first.name}: was renamed: its number in the stream is 1, .* 0"):
                read(stream)
        first.unlink()
        second.unlink()
        assert [int(each) for each in stream.read("act")] == [2, 3]
        last.rename(last.with_name("00000100-act-output.safetensors"))
        with pytest.raises(FormatError, match="was renamed"):
            list(stream)

    def test_two_files_with_one_number(self, stream, tmp_path) -> None:
        stream(captured(torch.tensor(1.0)))
        (file,) = (tmp_path / "stream").iterdir()
        copy = file.with_name("00000000-other.safetensors")
        copy.write_bytes(file.read_bytes())
        for reads in (len, list, lambda stream: list(stream.read("act"))):
            with pytest.raises(FormatError, match=rf"{copy.name}: has the number of {file.name}"):
                reads(stream)

    def test_files_of_an_older_version_have_no_number(self, stream, tmp_path) -> None:
        about = {KEY: '{"layer": "act", "part": "output", "order": 0}'}
        save_file({"tensor": torch.ones(2)}, tmp_path / "stream" / "00000007-act-output.safetensors", about)
        with pytest.warns(tp.Notice, match="without a checksum"):
            assert [each.tolist() for each in stream.read("act")] == [[1, 1]]

    @pytest.mark.parametrize("name", ["notes.txt", ".DS_Store", "model.safetensors", "7up-b.safetensors"])
    def test_a_file_that_is_none_of_its_own(self, stream, tmp_path, name) -> None:
        stream(captured(torch.ones(1)))
        (tmp_path / "stream" / name).write_bytes(b"something else")
        opened = tp.TensorStream.opened(tmp_path / "stream")
        opened(captured(torch.zeros(1)))
        assert [float(each) for each in opened.read("act")] == [1, 0]
