"""A run in an object store: memory:// and S3."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from run_data import colour_model, part_digests, write_pictures
from torchpeek.errors import FormatError
from torchpeek.runs.api import run
from torchpeek.runs.object_storage import ObjectStorage, is_url
from torchpeek.runs.parts import complete_parts
from torchpeek.runs.run import open_run
from torchpeek.runs.run_folder import storage_of
from torchpeek.runs.verify import verified

COUNT = 13


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder, COUNT)
    return folder


@pytest.fixture(params=["memory", "s3"])
def url(request, monkeypatch) -> Iterator[str]:
    if request.param == "memory":
        pytest.importorskip("fsspec")
        yield f"memory://{uuid.uuid4().hex}/run"
        return
    server_of_moto = pytest.importorskip("moto.server")
    boto3, s3fs = pytest.importorskip("boto3"), pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = server_of_moto.ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        boto3.client("s3").create_bucket(Bucket="pictures")
        yield f"s3://pictures/{uuid.uuid4().hex}/run"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


def test_a_run_in_a_store(data: Path, tmp_path: Path, url: str) -> None:
    loaded = colour_model()
    run(loaded, data, url, methods=["gradcam"], batch=4, workers=0)
    run(loaded, data, tmp_path / "out", methods=["gradcam"], batch=4, workers=0)
    stored, local = open_run(url), open_run(tmp_path / "out")
    for query in ("select * from samples order by key", "select * from heatmaps order by key", "select * from errors"):
        assert stored.sql(query).fetchall() == local.sql(query).fetchall()
    key = "red/00000.png"
    assert torch.equal(stored.heatmap(key, "gradcam").values, local.heatmap(key, "gradcam").values)
    storage, digests = storage_of(url), part_digests(tmp_path / "out")
    for shard, group in complete_parts(storage):
        for file in storage.files(f"parts/{shard:06d}/{group}"):
            name = f"parts/{shard:06d}/{group}/{file}"
            assert storage.read(name) == (tmp_path / "out" / name).read_bytes()
            digests.pop(name)
    assert digests == {}
    run(loaded, None, url, methods=["layercam"], workers=0)
    assert open_run(url).sql("select count(*) from heatmaps").fetchall() == [(2 * COUNT,)]
    assert verified(url).damaged == ()


def test_the_first_writer_wins(url: str) -> None:
    storage = ObjectStorage(url)
    assert storage.put_once("run.json", b"one")
    assert not storage.put_once("run.json", b"two")
    assert storage.read("run.json") == b"one"
    with pytest.raises(FormatError, match=r"run\.json: has 3 bytes; allowed: at most 2"):
        storage.read("run.json", 2)
    with pytest.raises(FormatError, match=r"nothing\.json: "):
        storage.read("nothing.json")


def test_a_folder_without_its_mark_does_not_count(url: str) -> None:
    storage = ObjectStorage(url)
    storage.put_once("parts/000000/one/index.parquet", b"half")
    assert list(complete_parts(storage)) == []
    storage.put_folder("parts/000000/one", {"index.parquet": b"whole", "part.json": b"{}"}, "part.json")
    assert list(complete_parts(storage)) == [(0, "one")]
    assert storage.read("parts/000000/one/index.parquet") == b"whole"
    storage.remove_folder("parts/000000/one", "part.json")
    assert list(complete_parts(storage)) == []


def test_what_is_a_url() -> None:
    assert is_url("s3://bucket/run")
    assert is_url("memory://run")
    assert not is_url("runs/v2")
    assert not is_url("a b://c")
    assert not is_url(Path("s3://bucket"))
