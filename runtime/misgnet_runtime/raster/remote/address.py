"""Parses the addresses of remote rasters: ``https://``, ``http://`` and ``s3://``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from misgnet_runtime.errors import UsageError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # at least two characters: "C://" is a drive
_SCHEMES = ("https", "http", "s3")
_LONGEST = 8192  # characters; servers accept about as many
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,253}[a-z0-9]")


def is_address(text: str) -> bool:
    """Returns whether ``text`` is an address with a scheme, not a path."""
    return _SCHEME.match(text) is not None


@dataclass(frozen=True)
class Address:
    """The address of a file on a server."""

    url: str  # complete, with its query, which may hold a signature: not for messages
    scheme: str  # "https", "http" or "s3"
    host: str  # without port; for S3 the bucket
    path: str  # after the host, as written; for S3 the key

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parses an address.

        Raises:
            UsageError: It has another scheme, names no file, or contains a password.
        """
        shown = hidden(text)
        if len(text) > _LONGEST or not text.isprintable() or " " in text:
            raise UsageError(f"address {shown[:200]} contains spaces or control characters, or is too long")
        scheme, _, rest = text.partition("://")
        scheme = scheme.lower()
        if scheme not in _SCHEMES:
            raise UsageError(f"address {shown} starts with {scheme}://; expected https://, http://, s3:// or a path")
        if scheme == "s3":
            host, _, path = rest.partition("/")
            if not _BUCKET.fullmatch(host):
                raise UsageError(f"address {shown} names no bucket; expected s3://BUCKET/KEY")
        else:
            parts = _split(text)
            if parts is None or not parts.hostname:
                raise UsageError(f"address {shown} is not valid; expected {scheme}://HOST/PATH")
            if "@" in parts.netloc:
                raise UsageError(f"address {shown} contains a user name or a password; use a signed address instead")
            host, path, text = parts.hostname, parts.path, text.partition("#")[0]
        found = cls(text, scheme, host, path.removeprefix("/"))
        if found.name in ("", ".", ".."):
            raise UsageError(f"address {shown} names no file")
        return found

    @property
    def name(self) -> str:
        """The file name, as written in the address."""
        return self.path.rpartition("/")[2]

    def __str__(self) -> str:
        return hidden(self.url)


def hidden(url: str) -> str:
    """Returns an address for messages: without user, password, query and fragment, where secrets may be."""
    scheme, mark, rest = url.partition("://")
    if scheme.lower() == "s3" or not mark:
        return url
    place, slash, path = re.split(r"[?#]", rest)[0].partition("/")
    return f"{scheme}://{place.rpartition('@')[2]}{slash}{path}"


def _split(text: str) -> SplitResult | None:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises ValueError for anything but a number
    except ValueError:
        return None
    return parts
