"""Files that are this user's alone: what processes of one user tell each other.

Laws:
- Whoever can write these files decides where a program connects to. So they live in a directory of mode
  700 that belongs to this user, and are looked at through its descriptor: what was checked is what is
  used, whoever renames directories or plants links meanwhile.
- A file appears whole, by renaming.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

__all__ = ["opened", "read", "write"]

MAX_SIZE: Final = 64 << 20
"""Octets of one file that are read: 10,000 instances take 8 MB."""


@contextmanager
def opened(path: str, *, create: bool = False) -> Iterator[int]:
    """Open the directory *path*, making it first if need be, and lend its descriptor.

    Raises:
        PermissionError: it is somebody else's, or others may enter it.
        OSError: it cannot be made or opened.
    """
    if create:
        os.makedirs(path, mode=0o700, exist_ok=True)  # noqa: PTH103 - descriptors below, no Path
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        status = os.fstat(directory)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise PermissionError(
                0, f"the directory must belong to this user with mode 700; it has {status.st_mode & 0o777:o}"
            )
        yield directory
    finally:
        os.close(directory)


def read(directory: int, name: str, octets: int = -1) -> tuple[bytes, os.stat_result]:
    """Return the content of a file, its first *octets* or all, and its status when it was opened.

    Raises:
        OSError: it is not there, no file of this user, or larger than ``MAX_SIZE``.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK  # the last one: a FIFO must not hold us up
    with os.fdopen(os.open(name, flags, dir_fd=directory), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(0, f"{name} is no file of this user")
        if status.st_size > MAX_SIZE:
            raise OSError(0, f"{name} has {status.st_size} octets, at most {MAX_SIZE} are read")
        return file.read(octets), status


def write(directory: int, name: str, content: bytes) -> None:
    """Put a file with *content* in place of what has this *name*.

    Raises:
        OSError: that cannot be done; nothing has changed then.
    """
    unfinished = f"{name}.{os.getpid()}.{time.monotonic_ns()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with os.fdopen(os.open(unfinished, flags, 0o600, dir_fd=directory), "wb") as file:
            file.write(content)
        os.replace(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):  # perhaps it was never there; the first error is the one to tell
            os.unlink(unfinished, dir_fd=directory)
        raise
