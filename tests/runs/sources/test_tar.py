"""Tar archives in webdataset's layout, also hostile and damaged ones."""

from __future__ import annotations

import io
import json
import pickle
import random
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from images import noise
from torchpeek.errors import ClassNotFound, FormatError, InputError, PictureError
from torchpeek.runs.samples import Sample
from torchpeek.runs.sources import source_of, stored_source
from torchpeek.runs.sources.tar import with_braces_expanded

CLASSES = ["cat", "dog"]


def picture(width: int) -> bytes:
    buffer = io.BytesIO()
    noise((width, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def packed(file: Path, members: Sequence[tuple[str, bytes]], format_: int = tarfile.PAX_FORMAT) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=format_) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def test_what_lies_beside_a_picture(tmp_path: Path) -> None:
    about = {"label": "cat", "boxes": [[1, 2, 3, 4]], "split": "val"}
    members = [
        *(("0001.png", picture(8)), ("0001.cls", b"1\n"), ("0001.mask.png", picture(9))),
        *(("0002.json", json.dumps(about).encode()), ("0002.png", picture(10))),
        *(("0003.png", picture(11)), ("0003.txt", b"Dog\n")),
        *(("0004.txt", b"two cats on a sofa"), ("0004.png", picture(12))),  # a caption is no label
        *(("d/0005.left.png", picture(13)), ("d/0005.right.png", picture(14)), ("d/0005.cls", b"0")),
        *(("0006.5_a.png", picture(15)), ("0006.5_a.cls", b"0"), ("0006.7_a.png", picture(16)), ("0006.7_a.cls", b"1")),
        *(("._0007.png", b"macOS"), ("0008.npy", b"no picture")),
    ]
    source = source_of(packed(tmp_path / "val.tar", members), CLASSES)
    samples = list(source.samples())
    assert [(each.key, each.label, each.boxes, each.split) for each in samples] == [
        ("0001.png", 1, (), None),
        ("0002.png", 0, ((1.0, 2.0, 3.0, 4.0),), "val"),
        ("0003.png", 1, (), None),
        ("0004.png", None, (), None),
        ("d/0005.left.png", 0, (), None),
        ("d/0005.right.png", 0, (), None),
        ("0006.5_a.png", 0, (), None),
        ("0006.7_a.png", 1, (), None),
    ]
    assert source.labels_from == "the files beside the pictures have class indices and class names"
    contents = dict(members)
    for reader in (source, pickle.loads(pickle.dumps(source)), stored_source(source.description)):
        assert [reader.read(each) for each in samples] == [contents[each.key] for each in samples]
        assert reader.read_mask(samples[0]) == picture(9)
        assert reader.read_mask(samples[1]) is None


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_the_formats_of_names(tmp_path: Path, format_: int) -> None:
    names = ["a.png", "f" * 90 + "/" + "n" * 90 + ".png", "./b.png"]
    if format_ != tarfile.USTAR_FORMAT:
        names += ["long/" * 60 + "c.png", "ä/ö.png"]
    source = source_of(packed(tmp_path / "x.tar", [(each, picture(8)) for each in names], format_), None)
    samples = list(source.samples())
    assert [each.key for each in samples] == [each.removeprefix("./") for each in names]
    assert {source.read(each) for each in samples} == {picture(8)}


def test_folders_links_and_devices_are_no_pictures(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (("d.png", tarfile.DIRTYPE), ("l.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        info = tarfile.TarInfo("a.png")
        info.size = len(picture(8))
        archive.addfile(info, io.BytesIO(picture(8)))
    assert [each.key for each in source_of(tmp_path / "x.tar", None).samples()] == ["a.png"]


@pytest.mark.parametrize(
    "data", ["folder", "v-*.tar", "v-{00..02}.tar", "v-{00,01,02}.tar", ["v-02.tar", "v-00.tar", "v-01.tar"]]
)
def test_several_archives_are_named_in_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str | list[str]
) -> None:
    for number in range(3):
        packed(tmp_path / f"v-{number:02d}.tar", [("1.png", picture(8 + number)), ("1.cls", b"0")])
    monkeypatch.chdir(tmp_path)
    source = source_of(tmp_path if data == "folder" else data, CLASSES)
    samples = list(source.samples())
    assert [each.key for each in samples] == ["v-00.tar/1.png", "v-01.tar/1.png", "v-02.tar/1.png"]
    monkeypatch.chdir("/")
    stored = stored_source(source.description)
    assert [stored.read(each) for each in samples] == [picture(8), picture(9), picture(10)]


def test_braces() -> None:
    assert with_braces_expanded("{a,b}-{8..10}") == ["a-8", "a-9", "a-10", "b-8", "b-9", "b-10"]
    assert with_braces_expanded("{08..10}{}") == ["08", "09", "10"]
    for text in ("{0..99999999}", "{0..9999}{0..9999}"):
        with pytest.raises(InputError, match="1,000,000"):
            with_braces_expanded(text)


def test_the_same_member_again_is_another_sample(tmp_path: Path) -> None:
    members = [("a.png", picture(8)), ("a.cls", b"0"), ("a.png", picture(9)), ("a.cls", b"1")]
    source = source_of(packed(tmp_path / "x.tar", members), CLASSES)
    samples = list(source.samples())
    assert [(each.key, each.label) for each in samples] == [("a.png", 0), ("a.png#2", 1)]
    assert [source.read(each) for each in samples] == [picture(8), picture(9)]


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "x/../../a.png", "a\nb.png", "C:\\a.png"])
def test_a_hostile_name_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    file = packed(tmp_path / "x.tar", [("ok.png", picture(8)), (name, picture(8))])
    with pytest.raises(FormatError, match=r"x\.tar: the member .*a\\?.*leads out of the archive"):
        list(source_of(file, None).samples())


def with_size(header_of: str, size: bytes, data: bytes) -> bytes:
    """An archive with a good member and then one whose header says this size."""
    info = tarfile.TarInfo(header_of)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size
    if header_of == "@LongLink":
        header[156:157] = b"L"
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    good = io.BytesIO()
    with tarfile.open(fileobj=good, mode="w") as archive:
        info = tarfile.TarInfo("good.png")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
        end = archive.offset
    return good.getvalue()[:end] + bytes(header) + data + bytes(20480)


@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + (1 << 60).to_bytes(11, "big")])
def test_a_huge_member_is_an_error_and_nothing_is_allocated(tmp_path: Path, size: bytes) -> None:
    for name, words in (("huge.png", r"'huge\.png' has [\d,]+ bytes"), ("@LongLink", r"after 'good\.png' has a name")):
        (tmp_path / "x.tar").write_bytes(with_size(name, size, picture(8)))
        with pytest.raises(FormatError, match=words):
            list(source_of(tmp_path / "x.tar", None).samples())


def test_an_archive_cut_short_anywhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    whole = packed(tmp_path / "x.tar", [(f"{number}.png", picture(8)) for number in range(3)]).read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in [*range(0, end, 311), 512, 1024, end // 512 * 512 + 512]:
        (tmp_path / "y.tar").write_bytes(whole[:length])
        with pytest.raises(FormatError, match=r"y\.tar"):
            list(source_of(tmp_path / "y.tar", None).samples())


def test_damage_joined_archives_and_compression_are_named(tmp_path: Path) -> None:
    whole = bytearray(packed(tmp_path / "x.tar", [("a.png", picture(8)), ("b.png", picture(8))]).read_bytes())
    cases = {"joined": bytes(whole) + bytes(whole), "text": b"no archive" * 100}
    whole[512 * (1 + -(-len(picture(8)) // 512)) + 3] ^= 1
    cases["damaged"] = bytes(whole)
    cases["compressed"] = b"\x1f\x8b" + bytes(600)
    words = {
        "joined": r"goes on after its end mark, which follows 'b\.png'",
        "text": "no tar archive",
        "damaged": r"damaged after the member 'a\.png'",
        "compressed": "is compressed .gzip.",
    }
    for name, data in cases.items():
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(FormatError, match=words[name]):
            list(source_of(tmp_path / "x.tar", None).samples())


@pytest.mark.parametrize(
    ("name", "data", "error", "words"),
    [
        ("a.cls", b"2", ClassNotFound, r"a\.png: no class 2"),
        ("a.json", b"{", FormatError, r"a\.json"),
        ("a.json", b"[1]", FormatError, r"a\.json"),
        ("a.json", b'{"boxes": [1, 2]}', InputError, r"a\.png"),
    ],
)
def test_what_cannot_be_beside_a_picture(tmp_path: Path, name: str, data: bytes, error: type, words: str) -> None:
    file = packed(tmp_path / "x.tar", [("a.png", picture(8)), (name, data)])
    with pytest.raises(error, match=words):
        list(source_of(file, CLASSES).samples())


@pytest.mark.parametrize(
    "location",
    ["../x.tar:0+9", "/x.tar:0+9", "x.tar:0+99999999999", "x.tar:999999+9", "y.tar:0+9", "x.tar", "a.png:0+3"],
)
def test_a_location_outside_of_the_archives_is_refused(tmp_path: Path, location: str) -> None:
    packed(tmp_path / "in" / "x.tar", [("a.png", picture(8))])
    packed(tmp_path / "x.tar", [("a.png", picture(8))])
    source = stored_source(source_of(tmp_path / "in" / "x.tar", None).description)
    with pytest.raises(PictureError):
        source.read(Sample("a.png", location))


def test_no_archive_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="matches no file"):
        list(source_of(str(tmp_path / "*.tar"), None).samples())
    with pytest.raises(FormatError, match=r"none\.tar"):
        list(source_of(str(tmp_path / "none.tar"), None).samples())


def test_no_damage_raises_anything_but_an_error_that_names_the_archive(tmp_path: Path) -> None:
    members = [("ä.png", picture(8)), ("ä.cls", b"1"), ("n" * 150 + ".png", picture(9)), ("b.json", b'{"label": 1}')]
    whole = packed(tmp_path / "x.tar", members).read_bytes()
    draw, errors = random.Random(0), list[str]()
    for _ in range(400):
        damaged = bytearray(whole)
        start = draw.randrange(len(whole.rstrip(b"\0")) // 512) * 512
        place = start + draw.choice([0, 100, 124, 128, 156, 257, 345, draw.randrange(512)])
        damaged[place : place + 4] = draw.choice([b"7777", b"\x80\xff\xff\xff", b"L\0\0\0", b"x000", b"../a", bytes(4)])
        header = damaged[start : start + 512]
        if draw.random() < 0.7:  # the checksum is right
            damaged[start + 148 : start + 156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
        (tmp_path / "x.tar").write_bytes(damaged)
        try:
            list(source_of(tmp_path / "x.tar", CLASSES).samples())
        except (FormatError, InputError) as error:
            errors.append(str(error))
    assert 100 < len(errors) < 400
    assert all("x.tar" in error for error in errors)
