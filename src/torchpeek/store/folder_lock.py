"""One writer for each folder: a lock that ends with its process, also where that is killed.

The folder itself is locked by `flock`. This leaves no file, holds also when the folder is moved, and the system ends it
with the process. Where a file system cannot lock folders, a file in the folder names the process that writes to it. The
next writer looks whether that process still runs.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import secrets
import socket
import stat
import time
import weakref
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from torchpeek.forks import in_child
from torchpeek.interrupts import uninterrupted
from torchpeek.signal_gate import finalised
from torchpeek.system_errors import ignored, is_of_system

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PREFIX = ".torchpeek-"
"""What the names of temporary files begin with. They do not count as results."""

_FILE = f"{PREFIX}lock"
_MOST_LETTERS = 4096  # a lock file has about 100
_SECONDS_TO_WRITE = 10.0  # an empty lock file is younger than that while its owner writes into it


class FolderHeld(Exception):
    """Another writer has the folder. The text says which."""


class FolderLock:
    """The right to write to a folder. It ends with `release`, when nothing refers to it, and with the process."""

    def __init__(self, handle: int | None, identity: os.stat_result, file: Path | None) -> None:
        self._identity = identity.st_dev, identity.st_ino
        self._process = os.getpid()
        self._files = [] if file is None else [file]
        self._release = weakref.finalize(self, finalised, _give_back, handle, self._files, self._process)
        self._handle = handle
        _LOCKS.add(self)

    def __deepcopy__(self, memo: dict[int, object]) -> FolderLock:
        return self  # a copy of the folder writes with the same right

    @property
    def held(self) -> bool:
        """Whether this process holds it. A forked process does not have the lock of its parent."""
        return self._release.alive and self._process == os.getpid()

    def is_of(self, folder: Path) -> bool:
        """Whether there is such a folder, and it is the one that was locked."""
        with ignored():
            found = folder.stat()
            return (found.st_dev, found.st_ino) == self._identity
        return False

    def remove_file(self) -> None:
        """Remove the lock file, if there is one, so that the folder can be removed before it is given back."""
        _remove(self._files, self._process)

    def release(self) -> None:
        """Let others write to the folder."""
        with uninterrupted():
            self._release()

    def _after_fork(self) -> None:
        """Close the copy of a forked process, which would hold the lock beyond the end of its parent."""
        if self._release.detach() is not None and self._handle is not None:
            os.close(self._handle)


_LOCKS: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _close_copies() -> None:
    for lock in list(_LOCKS):
        lock._after_fork()


in_child(_close_copies)


def lock_folder(folder: Path) -> FolderLock:
    """Take the right to write to a folder.

    Raises:
        FolderHeld: When another writer has it, in this process or in another one.
        FileNotFoundError: When there is no such folder, or it was replaced meanwhile.
        OSError: When it cannot be opened.
    """
    try:
        return _locked(folder)
    except FolderHeld:
        gc.collect()  # perhaps its holder in this process is garbage
        return _locked(folder)


def _locked(folder: Path) -> FolderLock:
    with uninterrupted():
        handle = None if fcntl is None else os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            flocked = handle is not None and _flocked(handle, folder)
            identity = folder.stat() if handle is None else os.fstat(handle)
            file = _claimed_file(folder, create=not flocked)
            lock = FolderLock(handle, identity, file)
        except BaseException:
            if handle is not None:
                os.close(handle)
            raise
        if not lock.is_of(folder):  # the writer before has removed it
            lock.release()
            raise FileNotFoundError(f"{folder} was removed")
        return lock


def _flocked(handle: int, folder: Path) -> bool:
    """Whether the folder is locked now; False where its file system cannot do it. Raises FolderHeld."""
    assert fcntl is not None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderHeld(_holder_words(_flock_holder(os.fstat(handle).st_ino))) from None
    except OSError as error:  # NFS locks no folders
        if not is_of_system(error):
            raise
        return False
    return True


def _flock_holder(inode: int) -> int | None:
    """The process that has locked a file, where the system says it."""
    lines: list[str] = []
    with ignored():
        lines = Path("/proc/locks").read_text().splitlines()
    found = (re.search(rf"FLOCK .* WRITE +(\d+) +\w+:\w+:{inode} ", line) for line in lines)
    return next((int(match[1]) for match in found if match and int(match[1]) > 0), None)


def _holder_words(process: int | None, host: str = "") -> str:
    if process is None:
        return "another process"
    if process == os.getpid() and host in ("", socket.gethostname()):
        return f"another object or thread of this process ({process})"
    return f"process {process} on {host or socket.gethostname()}"


def _claimed_file(folder: Path, *, create: bool) -> Path | None:
    """Make the lock file. Without `create`, only look for that of somebody else. Raises FolderHeld."""
    path = folder / _FILE
    for _ in range(20):
        if create:
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_CLOEXEC", 0), 0o666)
            except FileExistsError:
                pass
            else:
                with os.fdopen(handle, "w") as file:
                    process = os.getpid()
                    json.dump({"process": process, "host": socket.gethostname(), "started": _started(process)}, file)
                return path
        try:
            text, age = _lock_text(path), time.time() - path.stat().st_mtime
        except FileNotFoundError:
            if not create:
                return None
            continue
        _check_gone(text, age, path)
        _remove_stale(path, text)
    raise FolderHeld(f"others, who make and remove {path} all the time")


def _lock_text(path: Path) -> str:
    """The text of a lock file. Raises OSError for a link, a FIFO or another thing in its place, which nobody wrote."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"{path.name} in it is no regular file; delete it")
    with open(path, errors="replace") as file:
        return file.read(_MOST_LETTERS)


def _check_gone(text: str, age: float, path: Path) -> None:
    """Raise FolderHeld unless the process that wrote a lock file is known to be gone."""
    try:
        about = json.loads(text)
        process, host, started = int(about["process"]), str(about["host"]), str(about["started"])
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError):
        if age < _SECONDS_TO_WRITE:
            raise FolderHeld("another process") from None
        return  # cut off by a full disk, or by the end of its process
    if host != socket.gethostname():
        raise FolderHeld(f"{_holder_words(process, host)} (if that has ended, delete {path})")
    if process_runs(process) and _started(process) == started:
        raise FolderHeld(_holder_words(process, host))


def _remove_stale(path: Path, text: str) -> None:
    """Remove the lock file of a process that is gone, unless another writer has replaced it meanwhile."""
    aside = path.with_name(f"{_FILE}-{secrets.token_hex(4)}")
    try:
        path.rename(aside)
        if _lock_text(aside) == text:
            aside.unlink()
        else:
            aside.rename(path)
    except FileNotFoundError:
        return


def _remove(files: list[Path], process: int) -> None:
    while files and process == os.getpid():
        files.pop().unlink(missing_ok=True)


def _give_back(handle: int | None, files: list[Path], process: int) -> None:
    _remove(files, process)
    if handle is not None:
        os.close(handle)


def process_runs(process: int) -> bool:
    """Whether a process of this machine runs. True where that is not known."""
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and not is_of_system(error):
            raise
        return True
    return True


def _started(process: int) -> str:
    """When a process started, so that a later one with the same number is not taken for it; "" if not known."""
    with ignored(), suppress(IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def temporary_prefix() -> str:
    """What the names of this process's temporary files begin with."""
    return f"{PREFIX}{_host()}-{os.getpid()}-"


def remove_stale_files(folder: Path) -> None:
    """Remove temporary files in a folder that a killed process of this machine has left."""
    for file in folder.glob(f"{PREFIX}{_host()}-*"):
        match = re.match(rf"{re.escape(PREFIX + _host())}-(\d+)-", file.name)
        if match and not process_runs(int(match[1])):
            file.unlink(missing_ok=True)


def _host() -> str:
    return re.sub(r"[^\w.]", "-", socket.gethostname())[:40]
