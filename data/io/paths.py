"""Paths of folders and files, local or remote: `data/app`, `s3://bucket/app`, `gs://bucket/app`.

A remote path is a `UPath` over an fsspec file system and works like `pathlib.Path`. Endpoint and
credentials come from the environment or the machine, as in fsspec and the libraries of the
providers (`AWS_ENDPOINT_URL`, `AWS_PROFILE`, the role of an instance). A URL with credentials is
refused before anything is written or logged.
"""

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from upath import UPath

    AnyPath = Path | UPath
else:
    AnyPath = Path  # importing fsspec takes 0.2 s, and most commands do not need it
PathT = TypeVar("PathT", Path, AnyPath)
_AZURE = ("abfs", "abfss", "az")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+:/")
"""Beginning of a URL, also of one that `pathlib` took for a path: `s3:/bucket`."""
_SECRET = re.compile(
    r"""(?<![A-Za-z0-9+.-])(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+:/+)
    (?: (?P<user> [^/\s@'":\[\]]*:(?!\d+(?![\w%+-]))[^\s'"]*@ | [^/\s'"]+@ )
      | (?P<rest> [^/\s@'":\[\]?]*:(?!\d+(?![\w%+-]))[^\s'"]+ )
      | (?P<place> (?:(?![A-Za-z0-9+.-]{2}:/)[^\s?'"])+\?)[^\s'"]+ )""",
    re.VERBOSE,
)
"""The parts of a URL that may be secret: a user and a key before the host, in which `/` may stand
and `@` may be `%40`, and a query (signatures). Digits after a colon are a port. A scheme begins
a word, and a query is searched up to the next scheme, so that a search takes linear time."""


def to_path(text: str | AnyPath) -> AnyPath:
    """Returns a local path, or a path of a file system that fsspec knows.

    Every path that a user gives goes through this function or through `local_path` before it
    becomes a `Path`.

    Raises:
        ValueError: the URL carries credentials, its file system is not installed, or its library
            does not take the name.

    Example:
        >>> to_path("data/app"), to_path("memory://app").name
        (PosixPath('data/app'), 'app')
    """
    _require_text(text)
    if not isinstance(text, str):
        return text
    refuse_secrets("a path", text)
    text = _without_file_scheme(text)
    if not _URL.match(text):
        return Path(text)
    if "://" not in text:
        raise ValueError(f"a URL must have two slashes after its scheme, as s3://; got {text}.")
    from fsspec import get_filesystem_class
    from fsspec.utils import get_protocol
    from upath import UPath

    try:
        # Only the class is looked up: no connection may be open when a rank forks later.
        get_filesystem_class(get_protocol(text))
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"{text} must name a file system that fsspec has and whose package is installed; "
            f"{str(error).rstrip('.')}."
        ) from None
    if get_protocol(text) in _AZURE and re.search(r"[\[\]]", text):
        raise ValueError(f"{text} must have no square brackets, which adlfs cannot read.")
    return UPath(text)


def local_path(text: str | Path) -> Path:
    """Returns a path of this machine.

    Raises:
        ValueError: the text is a URL, or no text.
    """
    _require_text(text)
    refuse_secrets("a path", str(text))
    text = _without_file_scheme(str(text))
    if _URL.match(text):
        raise ValueError(
            "a path must be a folder or file of this machine, unless its help or the docs say that "
            f"it may be elsewhere; got {text}"
        )
    return Path(text)


def _without_file_scheme(text: str) -> str:
    return text[len("file://") :] if text.lower().startswith("file://") else text


def _require_text(path: object) -> None:
    if not isinstance(path, str) and not hasattr(path, "joinpath"):  # a Path or a UPath
        raise ValueError(f"must be a path, as text; got {path!r:.60}")
    if "\0" in str(path):
        raise ValueError(f"must be a path without the character NUL; got {path!r:.60}")


def cache_folder() -> Path:
    """Returns the folder for copies of what is elsewhere: $MSREC_CACHE or ~/.cache/msrec."""
    return Path(os.environ.get("MSREC_CACHE") or Path.home() / ".cache" / "msrec")


def is_remote(path: AnyPath) -> bool:
    """Returns whether a path is not on this machine, so that reading it takes a request."""
    return not isinstance(path, Path)


def is_file(path: AnyPath) -> bool:
    """Returns whether a file exists; unlike `UPath.is_file`, raises an error if the network fails.

    Raises:
        OSError: the file system cannot be reached.
    """
    if isinstance(path, Path):
        return path.is_file()
    try:
        path.fs.invalidate_cache(path.parent.path)  # another process may have written or deleted it
        return bool(path.fs.info(path.path)["type"] == "file")
    except FileNotFoundError:
        return False
    except Exception as error:  # noqa: BLE001 - each file system of fsspec has its own errors
        raise unreachable(path, error) from None


def entries(folder: AnyPath, pattern: str = "*") -> list[AnyPath]:
    """Returns the files and folders in a folder, by name; none if the folder does not exist.

    Raises:
        OSError: the file system cannot be reached.
    """
    with reachable(folder):
        if isinstance(folder, Path):
            found = list(folder.glob(pattern))
        else:
            folder.fs.invalidate_cache(folder.path)  # of an earlier call
            paths = folder.fs.glob(f"{glob.escape(folder.path)}/{pattern}")
            found = [folder / path.rstrip("/").rpartition("/")[2] for path in paths]
        return sorted(found, key=lambda path: path.name)


@contextmanager
def reachable(path: AnyPath, must: str = "be readable") -> Iterator[None]:
    """Turns errors of a remote file system into a sentence that names the path.

    Raises:
        OSError: there was an error other than a ValueError; see `unreachable`.
    """
    try:
        _connect(path)
        yield
    except Exception as error:
        if isinstance(path, Path) or isinstance(error, ValueError):
            raise
        if str(error).startswith(f"{path} must "):  # such a sentence already
            raise
        raise unreachable(path, error, must) from None


def _connect(path: AnyPath) -> None:
    """Makes the client of a remote path, which may refuse the environment with a ValueError."""
    try:
        None if isinstance(path, Path) else path.fs
    except ValueError as error:
        raise OSError(first_line(error)) from None


def unreachable(path: AnyPath, error: Exception, must: str = "be readable") -> OSError:
    """Returns an error that names a remote path, of the same class if it is a class of Python."""
    kinds = (FileNotFoundError, PermissionError, ConnectionError, TimeoutError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), OSError)
    return kind(
        f"{path} must {must}; {type(error).__name__}: {first_line(error)}. Check the name, and the "
        "endpoint and the credentials in the environment."
    )


def first_line(error: Exception) -> str:
    """Returns the first line of an error message, without secrets and without the full stop."""
    return (redacted(str(error)).splitlines() or [""])[0].rstrip(".")


def redacted(text: str) -> str:
    """Returns the text with users, keys and queries of URLs replaced by `***`.

    Example:
        >>> redacted("s3://KEY:SECRET@bucket/app and https://host/x?sig=1")
        's3://***@bucket/app and https://host/x?***'
    """

    def hidden(match: re.Match[str]) -> str:
        scheme, place = match["scheme"], match["place"] or ""
        return f"{scheme}***@" if match["user"] else f"{scheme}{place}***"

    return _SECRET.sub(hidden, text)


def refuse_secrets(name: str, value: object) -> None:
    """Refuses URLs with a user, key or query in a value or a tree of values.

    Raises:
        ValueError: there is such a URL; names its key and shows the URL redacted.
    """
    left: list[tuple[str, object]] = [(name, value)]
    seen = {id(value)}  # no recursion: a tree may be deep, or share parts
    while left:
        name, value = left.pop()
        children: list[tuple[str, object]]
        if isinstance(value, dict):
            children = [("a key", key) for key in value]
            children += [(str(key), child) for key, child in value.items()]
        elif isinstance(value, list | tuple):
            children = [(name, child) for child in value]
        elif isinstance(value, str) and _SECRET.search(value):
            raise ValueError(
                f"{name} must be a URL without credentials, because configs, logs and reports keep "
                f"it; got {redacted(value)}. Put them in the environment, such as "
                "AWS_ACCESS_KEY_ID, AWS_PROFILE or MLFLOW_TRACKING_PASSWORD."
            )
        else:
            continue
        new = [(key, child) for key, child in children if id(child) not in seen]
        seen.update(id(child) for _, child in new)
        left.extend(reversed(new))
