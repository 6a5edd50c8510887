"""Dataset folders on this machine or elsewhere: `data/app`, `s3://bucket/app`, `gs://bucket/app`.

What is remote is an fsspec file system behind `UPath`, which looks like `pathlib.Path`. Endpoint
and credentials are taken from the environment or the machine, as fsspec and the providers'
libraries do (`AWS_ENDPOINT_URL`, `AWS_PROFILE`, an instance's role); a URL that carries any is
refused before anything is written or logged.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from upath import UPath

    AnyPath = Path | UPath
else:
    AnyPath = Path  # fsspec takes a fifth of a second to import, which most commands can do without
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")
_SECRET = re.compile(r"(://)[^/\s@'\"]+@|(://[^\s?'\"]+\?)[^\s'\"]+")
"""A user or key before the host, or a query, such as a signature: nothing else in a URL is one."""


def to_path(text: str | AnyPath) -> AnyPath:
    """A path of this machine, or of a file system that fsspec knows.

    Raises:
        ValueError: the URL carries credentials, or names a file system that is not installed.

    Example:
        >>> to_path("data/app"), to_path("memory://app").name
        (PosixPath('data/app'), 'app')
    """
    if not isinstance(text, str):
        return text
    refuse_secrets("a path", text)
    if not _URL.match(text):
        return Path(text)
    from fsspec import get_filesystem_class
    from fsspec.utils import get_protocol
    from upath import UPath

    try:
        get_filesystem_class(get_protocol(text))  # only looked up: a rank may fork after this
    except (ValueError, ImportError) as error:
        raise ValueError(
            f"{text} must name a file system that fsspec has and whose package is installed; "
            f"{str(error).rstrip('.')}."
        ) from None
    return UPath(text)


def local_path(text: str | Path) -> Path:
    """A path of this machine.

    Raises:
        ValueError: it is a URL.
    """
    if isinstance(text, str) and _URL.match(text):
        raise ValueError(
            f"must be a folder or file of this machine (only datasets are read from elsewhere); "
            f"got {redacted(text)}"
        )
    return Path(text)


def is_remote(path: AnyPath) -> bool:
    """Whether reading it means a request over a network, or at least no file of this machine."""
    return not isinstance(path, Path)


def is_file(path: AnyPath) -> bool:
    """Whether there is such a file; `UPath.is_file` says no to a network that fails, too.

    Raises:
        OSError: its file system cannot be reached.
    """
    if isinstance(path, Path):
        return path.is_file()
    try:
        return bool(path.fs.info(path.path)["type"] == "file")
    except FileNotFoundError:
        return False
    except Exception as error:  # noqa: BLE001 - each file system of fsspec has its own errors
        raise OSError(
            f"{path} must be readable; {type(error).__name__}: {first_line(error)}. Check the "
            "endpoint and the credentials in the environment."
        ) from None


def first_line(error: Exception) -> str:
    """The first line of what an error says, without secrets and without its stop."""
    return (redacted(str(error)).splitlines() or [""])[0].rstrip(".")


def redacted(text: str) -> str:
    """The text without what a URL in it carries of users, keys and queries.

    Example:
        >>> redacted("s3://KEY:SECRET@bucket/app and https://host/x?sig=1")
        's3://***@bucket/app and https://host/x?***'
    """
    return _SECRET.sub(lambda found: f"{found[1]}***@" if found[1] else f"{found[2]}***", text)


def refuse_secrets(what: str, value: object) -> None:
    """Refuse a value, or a tree of values, in which a URL carries a user, a key or a query.

    Raises:
        ValueError: one does; the sentence names its key and shows it without them.
    """
    if isinstance(value, dict):
        for key, below in value.items():
            refuse_secrets(str(key), below)
    elif isinstance(value, list | tuple):
        for below in value:
            refuse_secrets(what, below)
    elif isinstance(value, str) and _SECRET.search(value):
        raise ValueError(
            f"{what} must be a URL without credentials, for configs, logs and reports keep it; got "
            f"{redacted(value)}. Give them in the environment, such as AWS_ACCESS_KEY_ID or "
            "AWS_PROFILE."
        )
