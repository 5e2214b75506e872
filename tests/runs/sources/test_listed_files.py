"""Where the paths of a list lead, and in which folders alone they are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchpeek.errors import PictureError
from torchpeek.runs.sources.file_places import FolderPlace, place_and_name
from torchpeek.runs.sources.listed_files import FoundRoots, read_listed, resolved


@pytest.mark.parametrize(
    ("path", "base", "location"),
    [
        ("a/b.png", "/data", "a/b.png"),
        ("a..b.png", "/data", "a..b.png"),
        ("../b.png", "/data/ann", "/data/b.png"),
        ("/x/../y/b.png", "/data", "/y/b.png"),
        ("file:///x/b.png", "/data", "/x/b.png"),
        ("../../b.png", "s3://bucket/a/ann", "s3://bucket/b.png"),
        ("s3://bucket/x/../b.png", "/data", "s3://bucket/b.png"),
    ],
)
def test_where_a_path_leads(path: str, base: str, location: str) -> None:
    assert resolved(path, base) == location


@pytest.mark.parametrize(
    ("locations", "roots"),
    [
        (["a.png", "b/c.png"], []),
        (["/d/x/1.png", "/d/x/y/2.png"], ["/d/x"]),
        (["/d/xy/1.png", "/d/x/1.png"], ["/d"]),
        (["/d/1.png", "/e/1.png"], ["/"]),
        (["s3://b/x/1.png", "s3://b/y/1.png", "s3://c/z/1.png", "/d/1.png"], ["/d", "s3://b", "s3://c/z"]),
        (["memory://1.png", "memory://2.png"], ["memory://"]),
    ],
)
def test_the_innermost_folders(locations: list[str], roots: list[str]) -> None:
    found = FoundRoots()
    for location in locations:
        found.add(location)
    assert found.found() == roots


def test_read_inside_alone(tmp_path: Path) -> None:
    for name in ("in/a.png", "inner.png", "b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    base, roots = FolderPlace(tmp_path / "in"), [str(tmp_path / "in")]
    assert read_listed("a.png", base, []) == read_listed(f"{tmp_path}/in/a.png", base, roots) == b"in/a.png"
    assert read_listed(f"{tmp_path}/b.png", base, ["/"]) == b"b.png"
    for location in (
        f"{tmp_path}/b.png",
        f"{tmp_path}/inner.png",
        f"{tmp_path}/in/../b.png",
        "../b.png",
        "memory://b.png",
    ):
        with pytest.raises(PictureError, match="inside of"):
            read_listed(location, base, roots)


def test_the_folder_of_a_file_at_the_root_of_a_store() -> None:
    pytest.importorskip("fsspec")
    place, name = place_and_name("memory://t.csv")
    assert (place.address, name) == ("memory://", "t.csv")
