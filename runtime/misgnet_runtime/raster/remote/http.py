"""Gets bytes over HTTP and HTTPS: bounded in time, bytes, retries and redirects.

Messages name addresses without their query, which may hold a signature. RFC 9110: HTTP Semantics.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from misgnet_runtime.errors import InputError, NetworkError, UnavailableError
from misgnet_runtime.formatting import plural
from misgnet_runtime.raster.remote.address import Address, hidden
from misgnet_runtime.raster.remote.options import RemoteOptions

CONNECTIONS = 8  # requests of a file at once
_REDIRECTS = 5
_MOVED = (301, 302, 303, 307, 308)
_REFUSED = (400, 401, 403, 404, 410)
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds before a retry; doubled each time
_SLOWEST = 1 << 10  # bytes per second; an answer that takes longer counts as a timeout
_PART = 1 << 16  # bytes read at once
_PROBLEM = 4096  # bytes of an error's body that are searched for S3's code
_CODE = re.compile(rb"<Code>(\w{1,64})</Code>")
Sign = Callable[[str, Mapping[str, str]], Mapping[str, str]]


@dataclass(frozen=True)
class Response:
    """A complete answer."""

    status: int  # 200, 206, 412 or 416
    headers: Mapping[str, str]  # names in any case
    content: bytes


class _TemporaryError(Exception):
    """A failure that another attempt may not have; ``after``: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


def load_urllib3() -> Any:
    """Imports urllib3; raises UnavailableError with the install command if it is missing."""
    try:
        return importlib.import_module("urllib3")
    except ImportError as error:
        raise UnavailableError("a remote raster requires urllib3: pip install 'misgnet-export[remote]'") from error


class Http:
    """Gets parts of one file. Several threads may use it at once.

    Args:
        address: For messages.
        url: What is requested.
        options: Timeout and number of retries.
        sign: Returns the headers of a request of a URL, given those that it needs; redirects are then refused.
    """

    def __init__(self, address: Address, url: str, options: RemoteOptions, sign: Sign | None = None) -> None:
        self._address, self._url, self._options, self._sign = address, url, options, sign
        self._urllib3 = load_urllib3()
        self._pool = _pool(self._urllib3, url, options.remote_timeout)
        self._moved: str | None = None  # where the last redirect led
        self._closed, self._lock = Event(), Lock()
        self.requests, self.fetched = 0, 0  # requests that were sent, and bytes of their answers

    def open(self) -> None:
        """Allows requests again after :meth:`close`."""
        self._closed.clear()

    def close(self) -> None:
        """Closes the connections; requests that wait for a retry end with NetworkError."""
        self._closed.set()
        self._pool.clear()

    def get(self, headers: Mapping[str, str], most: int) -> Response:
        """Sends a GET request and returns its answer of at most ``most`` bytes.

        Raises:
            NetworkError: The server cannot be reached, or has a temporary error, after all retries.
            InputError: The file does not exist, access is denied, or the answer is not valid.
        """
        attempts = self._options.remote_retries + 1
        for attempt in range(attempts):
            try:
                return self._once(headers, most)
            except _TemporaryError as error:
                wait = max(_FIRST_WAIT * 2**attempt, error.after or 0)
                too_long = f", and the server asks to wait {wait:,.0f} s" if (error.after or 0) > _LONGEST_WAIT else ""
                if attempt + 1 == attempts or too_long or self._closed.wait(min(wait, _LONGEST_WAIT)):
                    tried = f"{plural(attempt + 1, 'attempt')}{too_long}"
                    raise NetworkError(
                        f"{self._address} cannot be fetched: {error} ({tried}); finished work is kept: check the "
                        "network and rerun the command"
                    ) from error
        raise AssertionError("the last attempt returns or raises")

    def _once(self, headers: Mapping[str, str], most: int) -> Response:
        deadline = time.monotonic() + self._options.remote_timeout + most / _SLOWEST
        try:
            response = self._follow(headers)
            try:
                if response.status not in (200, 206, 412, 416):
                    raise self._problem(response)
                return Response(response.status, response.headers, self._body(response, most, deadline))
            finally:
                response.close()  # of a complete answer, the connection stays open
        except (self._urllib3.exceptions.LocationValueError, UnicodeError) as error:
            raise InputError(f"{self._address} is not a valid address: {error}") from error
        except (self._urllib3.exceptions.HTTPError, OSError) as error:
            raise _TemporaryError(_reason(error)) from error

    def _follow(self, headers: Mapping[str, str]) -> Any:
        """Returns the answer after redirects, its body not read yet."""
        if self._moved is not None:
            response = self._send(self._moved, headers)
            if response.status not in (*_MOVED, *_REFUSED):
                return response
            response.close()  # where it led may have expired
        url = self._url
        for _ in range(_REDIRECTS + 1):
            response = self._send(url, headers)
            if self._sign is not None or response.status not in _MOVED:
                self._moved = url if url != self._url else None
                return response
            response.close()
            url = self._next(url, response.headers.get("Location") or "")
        raise InputError(f"{self._address} is redirected more than {_REDIRECTS} times; check the address")

    def _send(self, url: str, headers: Mapping[str, str]) -> Any:
        with self._lock:
            self.requests += 1
        if self._sign is not None:
            headers = self._sign(url, headers)
        return self._pool.request("GET", url, headers=headers, preload_content=False, redirect=False, retries=False)

    def _next(self, url: str, location: str) -> str:
        """Returns where a redirect leads; raises InputError for another scheme, except from http to https."""
        try:
            found = urljoin(url, location).partition("#")[0]
            place = urlsplit(found).netloc
        except ValueError:
            found = place = ""
        old, new = (one.partition(":")[0].lower() for one in (url, found))
        if not (location and place) or (new != old and (old, new) != ("http", "https")):
            raise InputError(
                f"{self._address} is redirected to {hidden(found).partition('?')[0][:200] or 'an invalid address'}; "
                "only https:// addresses are followed, and http:// ones from http://"
            )
        if "@" in place:
            raise InputError(f"{self._address} is redirected to an address with a user name, which is not followed")
        return found

    def _body(self, response: Any, most: int, deadline: float) -> bytes:
        content = bytearray()
        while len(content) <= most:
            if time.monotonic() > deadline or self._closed.is_set():
                raise _TemporaryError(f"the server sent {len(content):,} bytes and is too slow")
            part = response.read1(min(_PART, most + 1 - len(content)), decode_content=False)
            if not part:
                return bytes(content)
            content += part
            with self._lock:
                self.fetched += len(part)
        return bytes(content)  # one byte too much: the caller refuses it

    def _problem(self, response: Any) -> Exception:
        """Returns the error for a status other than success."""
        status, region = response.status, response.headers.get("x-amz-bucket-region")
        code = _CODE.search(response.read(_PROBLEM) or b"")
        shown = f"HTTP {status}{f', {code[1].decode()}' if code else ''}"
        if status in _TEMPORARY:
            return _TemporaryError(f"the server answered {shown}", _retry_after(response.headers.get("Retry-After")))
        if self._sign is not None and region and status in (*_MOVED, 400):
            return InputError(f"{self._address} is in the region {region[:32]}; set AWS_REGION={region[:32]}")
        if status in (404, 410):
            return InputError(f"{self._address} does not exist ({shown}); check the address")
        if status in (401, 403):
            return InputError(
                f"access to {self._address} is denied ({shown}); check the address, its signature, or the credentials "
                "in the environment"
            )
        return InputError(f"{self._address} cannot be fetched: the server answered {shown}; check the address")


def _pool(urllib3: Any, url: str, seconds: float) -> Any:
    """Returns urllib3's pool of connections, through the proxy that the environment states for a URL, if any."""
    more = {"maxsize": CONNECTIONS, "timeout": urllib3.Timeout(connect=seconds, read=seconds)}
    scheme, host = url.partition("://")[0].lower(), url.split("/")[2]
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    if proxy and not proxy_bypass(host):
        try:
            return urllib3.ProxyManager(proxy, **more)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            raise InputError(f"the proxy {hidden(proxy)} for {scheme} in the environment cannot be used") from error
    return urllib3.PoolManager(**more)


def _retry_after(header: str | None) -> float | None:
    """Returns the seconds that a Retry-After header asks to wait; None if there is no valid one."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None


def _reason(error: Exception) -> str:
    """Returns the reason of a network error in a few words, without addresses."""
    name = type(error).__name__
    late = "the server does not answer in time"
    known = {
        "ConnectTimeoutError": late, "ReadTimeoutError": late, "NameResolutionError": "its host name is not known",
        "NewConnectionError": "no connection can be opened",
        "IncompleteRead": "the answer is truncated", "SSLError": "its TLS certificate is not accepted, or TLS failed",
        "ProxyError": "the proxy of the environment does not answer",
    }  # fmt: skip
    if "IncompleteRead" in str(error):  # wrapped in ProtocolError
        return known["IncompleteRead"]
    return known.get(name, f"the connection failed ({name})")
