"""Folders, tables and archives behind URLs."""

from __future__ import annotations

import io
import json
import pickle
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader, Dataset

from images import noise
from torchpeek.errors import FormatError, InputError, PictureError
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources import Source, source_of, stored_source

fsspec = pytest.importorskip("fsspec")


def picture(width: int) -> bytes:
    buffer = io.BytesIO()
    noise((width, 8)).save(buffer, "PNG")
    return buffer.getvalue()


Put = Callable[[dict[str, bytes]], str]


@pytest.fixture(params=["memory", "file", "s3"])
def put(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Writes files into a store, and returns the URL of their folder."""
    options: dict[str, Any] = {}
    server: Any = None
    if request.param == "s3":
        pytest.importorskip("s3fs")
        server, options, root = s3_server(monkeypatch)
    else:
        root = f"file://{tmp_path}/v" if request.param == "file" else "memory://v"

    def write(files: dict[str, bytes]) -> str:
        for name, data in files.items():
            with fsspec.open(f"{root}/{name}", "wb", auto_mkdir=True, **options) as file:
                file.write(data)
        return root

    yield write
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/v", recursive=True)
    if server is not None:
        server.stop()


def s3_server(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any], str]:
    moto = pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    bucket = f"bucket-{port}"  # moto keeps buckets when its server stops
    s3fs.S3FileSystem().mkdir(bucket)
    return server, {}, f"s3://{bucket}/v"


@pytest.mark.filterwarnings("ignore")
def test_a_folder_with_classes(put: Put) -> None:
    root = put(
        {"dog/1.png": picture(8), "cat/2.png": picture(9), "cat/notes.txt": b"", "cat/.x.png": b"", "z.png": b""}
    )
    source = source_of(root, ["cat", "dog"])
    samples = list(source.samples())
    assert [(each.key, each.label) for each in samples] == [("cat/2.png", 0), ("dog/1.png", 1), ("z.png", None)]
    for reader in (source, pickle.loads(pickle.dumps(source)), stored_source(source.description)):
        assert [reader.read(each) for each in samples[:2]] == [picture(9), picture(8)]
    with pytest.raises(PictureError, match=r"no\.png"):
        source.read(Sample("no.png"))
    with pytest.raises(PictureError, match="inside of"):
        source.read(Sample("../v/z.png"))


@pytest.mark.filterwarnings("ignore")
def test_tables(put: Put) -> None:
    root = put({"a.png": picture(8), "b/c.png": picture(9)})
    rows = [{"path": "a.png", "label": 1}, {"path": f"{root}/b/c.png", "label": 0}, {"path": "../v/a.png", "label": 0}]
    put({"t.jsonl": "\n".join(map(json.dumps, rows)).encode(), "t.csv": b"path,label\na.png,1\n"})
    buffer = io.BytesIO()
    pq.write_table(pa.table({"image": [picture(8), picture(9)], "label": [1, 0]}), buffer)
    put({"t.parquet": buffer.getvalue()})
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        source = source_of(f"{root}/{name}", ["cat", "dog"])
        samples = list(source.samples())
        stored = stored_source(source.description)
        assert [stored.read(each) for each in samples] == [picture(8), picture(9), picture(8)][: len(samples)]
        assert samples[0].label == 1


@pytest.mark.filterwarnings("ignore")
def test_archives(put: Put) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in (("1.png", picture(8)), ("1.cls", b"1"), ("2.png", picture(9))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    root = put({"x-0.tar": packed.getvalue(), "x-1.tar": packed.getvalue(), "cut.tar": packed.getvalue()[:1000]})
    for data in (f"{root}/x-*.tar", f"{root}/x-{{0..1}}.tar", [f"{root}/x-0.tar", f"{root}/x-1.tar"]):
        source = source_of(data, ["cat", "dog"])
        samples = list(source.samples())
        assert [each.key for each in samples] == ["x-0.tar/1.png", "x-0.tar/2.png", "x-1.tar/1.png", "x-1.tar/2.png"]
        assert [each.label for each in samples] == [1, None, 1, None]
        stored = stored_source(source.description)
        assert [stored.read(each) for each in samples] == [picture(8), picture(9)] * 2
    with pytest.raises(FormatError, match=r"cut\.tar"):
        list(source_of(f"{root}/cut.tar", None).samples())


@pytest.mark.filterwarnings("ignore")
def test_masks(put: Put) -> None:
    root = put({"p/a.png": picture(8), "m/a.png": picture(9)})
    source = source_of(f"{root}/p", None, masks=f"{root}/m")
    (sample,) = source.samples()
    assert source.read_mask(sample) == stored_source(source.description).read_mask(sample) == picture(9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["none", "none.csv", "none.tar"])
def test_what_is_not_there_is_named(put: Put, name: str) -> None:
    root = put({"a.png": b""})
    with pytest.raises((FormatError, InputError), match="none"):
        list(source_of(f"{root}/{name}", None).samples())


class _Files(Dataset[bytes]):
    def __init__(self, source: Source, samples: list[Sample]) -> None:
        self.source, self.samples = source, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> bytes:
        return self.source.read(self.samples[index])


@pytest.mark.filterwarnings("ignore")
def test_workers_read_after_a_fork(put: Put) -> None:
    root = put({f"{number}.png": picture(8 + number) for number in range(6)})
    source = source_of(root, None)
    samples = list(source.samples())
    own = [source.read(each) for each in samples]  # the store is open in this process
    loader = DataLoader(_Files(source, samples), batch_size=None, num_workers=2, timeout=30)
    assert list(loader) == own == [picture(8 + number) for number in range(6)]
