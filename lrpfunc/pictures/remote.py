"""Files and folders by their URLs: whatever fsspec knows (s3://, gs://, https://, hf://, memory://, zip://...::s3://...).

Nothing is kept open: each part of a file is asked for by itself, so that whoever has a `Remote`, in this process or in
one that was forked or sent it, reads by connections of its own. What the other side says comes as an `OSError` of the
kind that a disk raises; if it says nothing, after two more attempts, as a `ConnectionError`.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import re
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import quote, unquote
from urllib.request import url2pathname

from lrpfunc.errors import FileError, LrpError, MissingExtraError
from lrpfunc.extras import extra

# One letter before a colon is a drive of Windows. Of a chain, caches stand in front, and what a file is in behind.
URL = re.compile(r"((?:[a-z][\w+.-]+::)*)([a-z][\w+.-]+)://(.*?)(::.*)?", re.IGNORECASE | re.DOTALL)
MANGLED = re.compile(r"[a-z][\w+.-]+:/(?!/)", re.IGNORECASE)  # what `Path` makes of a URL
WEB = ("http", "https")
WITH_PASSWORDS = (*WEB, "ftp", "sftp", "ssh", "smb")
WAITS = (1.0, 4.0)  # seconds before a server that said nothing is asked again
PIECE = 1 << 20  # bytes that are read at once where a file is gone through; a request takes as long as a few of them
AT_ONCE = 32  # questions
# What file systems call that which changes with a file; the first that there is counts.
VERSIONS = (
    "ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "checksum", "blob_id", "CRC", "mtime", "LastModified",
    "last_modified", "Last-Modified", "updated", "modified", "created",
)  # fmt: skip

ABOUT_THE_FILE = (
    IsADirectoryError, NotADirectoryError, ValueError, TypeError, LookupError, NotImplementedError, EOFError,
    zipfile.BadZipFile, tarfile.TarError, zlib.error,
)  # fmt: skip

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Remote:
    """A file or folder by its URL, with what data sets need of the interface of `Path`.

    `before`, `after`: the other links of a chain. Errors: `OSError` wherever something is asked, see above.
    """

    before: str
    scheme: str
    path: str
    after: str

    @property
    def url(self) -> str:
        return f"{self.before}{self.scheme}://{self.path}{self.after}"

    def __str__(self) -> str:
        """For people and files: without passwords and signatures."""
        return "::".join(map(_told, self.url.split("::")))

    @property
    def _is_web(self) -> bool:
        """Whether names are written with %20 for a space."""
        return self.scheme.lower() in WEB

    @property
    def _parts(self) -> str:
        return (self.path.partition("?")[0] if self._is_web else self.path).rstrip("/")

    @property
    def name(self) -> str:
        last = self._parts.rpartition("/")[2]
        return unquote(last) if self._is_web else last

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> Remote:
        return replace(self, path=self._parts.rpartition("/")[0])

    def __truediv__(self, name: str) -> Remote:
        found = replace(self, path=self._parts)
        for part in name.split("/"):
            if part == "..":
                found = found.parent
            elif part not in ("", "."):
                step = quote(part) if self._is_web else part
                found = replace(found, path=f"{found.path}/{step}" if found.path else step)
        return found

    def __lt__(self, other: Remote) -> bool:
        return self.url.split("/") < other.url.split("/")

    def with_name(self, name: str) -> Remote:
        return self.parent / name

    # -- what is asked ------------------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """What is known of it."""
        return self._ask(lambda system, path: system.info(path))

    def exists(self) -> bool:
        try:
            return bool(self.info())
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        """Whether it is a folder, or a page with links to its files."""
        try:
            about = self.info()
        except FileNotFoundError:
            return False
        return about.get("type") == "directory" or about.get("mimetype") == "text/html"

    def below(self) -> list[str]:
        """The names of all files in a folder and below it, relative to it, as `sorted(path.rglob("*"))` has them."""

        def find(system: Any, path: str) -> list[str]:
            system.invalidate_cache()
            inside = path.rstrip("/") + "/" if path.rstrip("/") else ""
            return [name.removeprefix(inside) for name in system.find(path) if name.startswith(inside)]

        names = self._ask(find)
        if self._is_web:  # such pages also have links to themselves in another order
            names = [unquote(name) for name in names if "?" not in name and "#" not in name]
        return sorted((name for name in names if name and not name.endswith("/")), key=lambda name: name.split("/"))

    def part(self, start: int, size: int) -> bytes:
        """Some of a file's bytes."""
        data = self._ask(lambda system, path: system.cat_file(path, start=start, end=start + size))
        if len(data) > size:
            raise OSError(errno.EOPNOTSUPP, f"its server sends no parts of files: give simplecache::{self}", str(self))
        return data

    def read_bytes(self) -> bytes:
        return self._ask(lambda system, path: system.cat_file(path))

    def open(self, mode: Literal["rb"]) -> io.BufferedReader:
        """A file to be read in pieces."""
        size = self.info().get("size")
        if size is None:
            raise OSError(errno.EOPNOTSUPP, f"its server says no size: give simplecache::{self}", str(self))
        return io.BufferedReader(_Parts(self, size), PIECE)

    def version(self) -> str:
        """Its size and what else changes with it, as far as the file system tells."""
        about = self.info()
        return f"{about.get('size')} {next((about[key] for key in VERSIONS if about.get(key)), '')}"

    def fetch(self, to: Path) -> None:
        """Copy it to this machine."""
        self._ask(lambda system, path: system.get_file(path, str(to)))

    def _ask(self, question: Callable[[Any, str], Answer]) -> Answer:
        for wait in (*WAITS, None):
            try:
                return question(*_system(self, os.getpid()))
            except (LrpError, MemoryError):
                raise
            except Exception as error:  # whatever the packages of file systems raise
                said = _said(error, self)
                if wait is None or not isinstance(said, ConnectionError):
                    raise said from error
            time.sleep(wait)
        raise AssertionError


def _told(link: str) -> str:
    """A link of a chain, as it may be told."""
    scheme, separator, path = link.partition("://")
    if scheme.lower() in WEB:
        path = path.partition("?")[0]
    if scheme.lower() in WITH_PASSWORDS:
        host, slash, rest = path.partition("/")
        path = host.rpartition("@")[2] + slash + rest
    return scheme + separator + path


class _Parts(io.RawIOBase):
    """A file whose parts are asked for when they are read."""

    def __init__(self, place: Remote, size: int):
        self._place, self._size, self._at = place, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._at)
        data = self._place.part(self._at, size) if size > 0 else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


Place = Path | Remote


def place(text: str | Place) -> Place:
    """Where something lies: by its URL, or on this machine. Errors: `FileError` for a URL that went through `Path`."""
    if isinstance(text, Remote):
        return text
    if isinstance(text, Path):
        if MANGLED.match(str(text)) and not text.exists():
            raise FileError(f"{text} was a URL before it became a Path: give it as a string.")
        return text
    match = URL.fullmatch(text)
    if match is None:
        return Path(text)
    before, scheme, path, after = match.groups(default="")
    if scheme.lower() == "file" and not before and not after:
        return Path(url2pathname(path.removeprefix("localhost")))
    return Remote(before, scheme, path, after)


def below(root: Place, name: str) -> Place:
    """What a name means that stands in or is relative to a folder: it may be absolute, or a URL."""
    if URL.fullmatch(name):
        return place(name)
    if isinstance(root, Path):
        return root / name
    return Path(name) if os.path.isabs(name) else root / name.replace(os.sep, "/")


def part(where: Place, start: int, size: int) -> bytes:
    """Some of a file's bytes; fewer, if it ends before. Errors: `OSError`."""
    if isinstance(where, Remote):
        return where.part(start, size)
    with where.open("rb") as file:
        file.seek(start)
        return file.read(size)


@contextmanager
def local(where: Place, is_kept: bool = False) -> Iterator[Path]:
    """A file of this machine: itself, or a copy that has the same ending and is gone afterwards.

    `is_kept`: what it holds stays in memory until another is asked for. Errors: `OSError`.
    """
    if isinstance(where, Path):
        yield where
        return
    # What is mapped from the copy stays readable, but for Windows, where the copy stays, too.
    with tempfile.TemporaryDirectory(prefix="lrpfunc-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder, "copy" + "".join(Path(where.name).suffixes[-2:]))
        if is_kept:
            copy.write_bytes(_content(where, where.version()))
        else:
            where.fetch(copy)
        yield copy


@functools.lru_cache(maxsize=1)
def _content(where: Remote, version: str) -> bytes:
    return where.read_bytes()


def versions(places: Iterable[Place]) -> Iterator[str]:
    """What changes with each file: its size and time, or what else is known; "none" if nothing is.

    Errors: `ConnectionError`.
    """
    found = list(places)
    if not any(isinstance(each, Remote) for each in found):
        yield from map(_version, found)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(_version, found)


def _version(where: Place) -> str:
    try:
        if isinstance(where, Remote):
            return where.version()
        status = os.stat(where)
        return f"{status.st_size} {int(status.st_mtime)}"
    except ConnectionError:
        raise
    except OSError:  # which is said when it is read
        return "none"


# -- file systems -----------------------------------------------------------------------------------------------------


# All that were used. A forked process that lost those of its parent would close their connections, and by the table of
# sockets that both share, the parent would never hear again of its own.
_used: dict[int, Any] = {}


def _system(where: Remote, process: int) -> tuple[Any, str]:
    """The file system and the path in it. fsspec keeps file systems for each process, but not those in a file."""
    if where.after:
        system = _inside(where.before, where.scheme, where.after, process)
        return system, system._strip_protocol(f"{where.scheme}://{where.path}")
    return _made(where)


@functools.lru_cache(maxsize=4)
def _inside(before: str, scheme: str, after: str, process: int) -> Any:
    return _made(Remote(before, scheme, "", after))[0]


def _made(where: Remote) -> tuple[Any, str]:
    _check(where)
    system, path = extra("fsspec.core", "remote", f"reading {where.scheme}://").url_to_fs(where.url)
    _used[id(system)] = system
    return system, path


def _check(where: Remote) -> None:
    """Ask whether the packages are there that its file systems need.

    Errors: `FileError` for protocols that nobody knows, `MissingExtraError`.
    """
    for scheme in re.findall(r"(?:^|::)([a-z][\w+.-]+)(?=://|::|$)", where.url, re.IGNORECASE):
        registry = extra("fsspec.registry", "remote", f"reading {scheme}://")
        try:
            registry.get_filesystem_class(scheme.lower())
        except ImportError as error:
            raise MissingExtraError(_remedy(registry.known_implementations[scheme.lower()], scheme)) from error
        except ValueError as error:
            raise FileError(
                f"{where} cannot be read: no file system is called {scheme}://. Some that fsspec knows are https://, "
                "s3://, gs:// and hf://."
            ) from error


def _remedy(known: dict[str, str], scheme: str) -> str:
    """What to install for a protocol; fsspec's own need packages that it names."""
    package = known["class"].partition(".")[0]
    if scheme.lower() in WEB:
        return f"reading {scheme}:// needs aiohttp: pip install 'lrpfunc[remote]'"
    if package != "fsspec":
        return f"reading {scheme}:// needs {package}: pip install {package.replace('_', '-')}"
    return f"reading {scheme}:// needs more of fsspec: {known.get('err', 'see its documentation').rstrip('.')}."


def _said(error: Exception, where: Remote) -> OSError:
    """An error of a file system as one of the system's own; a `ConnectionError` where nothing is said of the file."""
    cause = error.__cause__
    if isinstance(cause, Exception) and (
        isinstance(cause, TimeoutError | ConnectionError) or type(cause).__module__.startswith("aiohttp")
    ):
        error = cause  # fsspec calls anything missing of which it got no answer
    status = getattr(error, "status", None) or getattr(error, "code", None)
    words = getattr(error, "message", "") if status else getattr(error, "strerror", None) or str(error)
    reason = " ".join(f"{status or ''} {words}".split())[:200].rstrip(".") or type(error).__name__
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(where))
    if isinstance(error, PermissionError) or status in (401, 403) or "Credential" in type(error).__name__:
        return PermissionError(errno.EACCES, f"no permission, or no credentials ({reason})", str(where))
    if isinstance(error, ABOUT_THE_FILE) or (isinstance(status, int) and 400 <= status < 429):
        return OSError(errno.EIO, f"it cannot be had ({reason})", str(where))
    return ConnectionError(errno.ECONNABORTED, f"the connection failed ({reason})", str(where))
