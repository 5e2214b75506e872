"""Files that a list names, by relative paths, absolute paths or URLs; read only inside of the folders of the list."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence

from torchpeek.errors import PictureError, shown
from torchpeek.runs.object_storage import is_url
from torchpeek.runs.sources.file_places import FilePlace, local_path, place_of


def resolved(path: str, base: str) -> str:
    """Where a path of a list leads.

    Args:
        path: A path relative to `base`, an absolute path, or a URL.
        base: The folder or URL of the list.

    Returns:
        The path itself where it lies inside of `base`; else an absolute path or a URL, without any "..".
    """
    if path.startswith("file://"):
        return os.path.normpath(local_path(path))
    if is_url(path):
        scheme, _, rest = path.partition("://")
        return f"{scheme}://{posixpath.normpath(rest)}"
    if os.path.isabs(path):
        return os.path.normpath(path)
    if ".." not in path.split("/"):
        return path
    if not is_url(base):
        return os.path.normpath(os.path.join(base, path))
    scheme, _, rest = base.partition("://")
    return f"{scheme}://{posixpath.normpath(posixpath.join('/', rest, path)).lstrip('/')}"


class FoundRoots:
    """The innermost folders in which all files of a list lie: one of this machine, and one for each store."""

    def __init__(self) -> None:
        self._roots: dict[str, str] = {}

    def add(self, location: str) -> None:
        """Take in what `resolved` gave."""
        if is_url(location):
            host = "/".join(location.split("/", 3)[:3])
            if host == location:  # a file right below the root of a store without buckets
                self._roots[host] = f"{location.partition('://')[0]}://"
                return
        elif os.path.isabs(location):
            host = ""
        else:
            return
        root = self._roots.get(host)
        if root is None:
            self._roots[host] = posixpath.dirname(location)
        elif not _is_below(location, root):
            self._roots[host] = _common(location, root)

    def found(self) -> list[str]:
        """The folders and URLs, sorted."""
        return sorted(set(self._roots.values()))


def _is_below(location: str, root: str) -> bool:
    return location.startswith(root if root.endswith("/") else f"{root}/")


def _common(location: str, root: str) -> str:
    while not _is_below(location, root):
        shorter = posixpath.dirname(root)
        if shorter in (root, ""):
            return root
        root = shorter
    return root


def read_listed(location: str, base: FilePlace, roots: Sequence[str]) -> bytes:
    """The bytes of a file.

    Args:
        location: What `resolved` gave.
        base: The place of the list.
        roots: What `FoundRoots` found.

    Raises:
        PictureError: When it cannot be read, or lies in none of these folders.
    """
    if not is_url(location) and not os.path.isabs(location):
        return base.read(location)
    for root in roots:
        if _is_below(location, root) and ".." not in location.split("/"):
            return place_of(root).read(location[len(root) :].lstrip("/"))
    raise PictureError(f"{shown(location)}: is no path inside of {', '.join([base.address, *roots])}")
