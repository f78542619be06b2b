"""Tests reading ranges of remote files: each byte is fetched once, faults are one clear error, versions never mix."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("urllib3", reason="remote rasters need the [remote] extra")

from misgnet_runtime.errors import InputError, NetworkError, UsageError
from misgnet_runtime.raster.remote import RemoteOptions, locate, read_document
from misgnet_runtime.raster.remote import http as http_module
from misgnet_runtime.raster.remote.address import Address, hidden, is_address
from misgnet_runtime.raster.remote.file import http_of
from misgnet_runtime.raster.remote.http import Http, Response
from misgnet_runtime.raster.remote.reader import RangeReader, _Version
from misgnet_runtime.raster.remote.s3 import _Place, s3_http
from misgnet_runtime.raster.remote.store import Store, merged
from misgnet_runtime.raster.source import Identity, LocalFile
from support.file_server import Fault, FileServer, Request, file_server

CONTENT = random.Random(0).randbytes(300_000)
OPTIONS = RemoteOptions(remote=True, remote_retries=2, remote_timeout=5)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(http_module, "_FIRST_WAIT", 0.01)
    (tmp_path / "a.bin").write_bytes(CONTENT)
    with file_server(tmp_path) as found:
        yield found


def reader(server: FileServer, name: str = "a.bin", options: RemoteOptions = OPTIONS) -> RangeReader:
    address = Address.parse(server.url(name))
    return RangeReader(address, http_of(address, options), options)


def failing(fault: Fault, *numbers: int) -> Any:
    """Returns a fault of the requests ``numbers``, or of all but the first."""
    return lambda request: fault if (request.number in numbers if numbers else request.number) else None


def test_bytes_are_those_of_the_file_and_none_is_fetched_twice(server: FileServer) -> None:
    found = reader(server)
    draw = random.Random(1)
    for _ in range(40):
        start = draw.randrange(len(CONTENT))
        count = draw.randrange(1, 30_000)
        if draw.random() < 0.5:
            found.fetch([(start, start + count), (start // 2, start // 2 + 10)])
        assert found.read(start, count) == CONTENT[start : start + count]
    assert (found.size, found.read(len(CONTENT), 10)) == (len(CONTENT), b"")
    assert found.fetched.size == server.sent <= len(CONTENT) * 9 // 8
    assert found.fetched.requests == len(server.requests)


def test_ranges_are_fetched_in_few_requests_with_the_identity_required(server: FileServer) -> None:
    found = reader(server)
    found.fetch([(50_000 + 1000 * i, 50_990 + 1000 * i) for i in range(20)] + [(250_000, 250_100)])
    assert sorted(server.ranges("a.bin")) == [(0, 16384), (50_000, 69_990), (250_000, 250_100)]
    etag = found.identity.value
    assert [one.headers.get("if-match") for one in server.requests] == [None, f'"{etag}"', f'"{etag}"']
    assert found.identity.kind == "etag"


def test_large_ranges_are_split_and_fetched_at_once(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("misgnet_runtime.raster.remote.reader._AT_ONCE", 50_000)
    found = reader(server)
    found.fetch([(0, len(CONTENT))])
    assert found.read(0, len(CONTENT)) == CONTENT
    assert len(server.requests) == 7
    assert server.sent == len(CONTENT)


def test_identity_is_size_and_time_if_the_etag_is_weak_or_missing(server: FileServer) -> None:
    server.weak = True
    found = reader(server)
    assert found.identity.kind == "size-and-time"
    assert found.identity.value.startswith("300000 bytes, ")
    found.fetch([(200_000, 200_010)])
    assert server.requests[1].headers["if-unmodified-since"] in found.identity.value
    server.times = False
    with pytest.raises(InputError, match="neither a strong ETag nor Last-Modified"):
        _ = reader(server).size


@pytest.mark.parametrize("etags", [True, False])
def test_file_replaced_meanwhile_is_refused(server: FileServer, tmp_path: Path, etags: bool) -> None:
    server.etags = etags
    found = reader(server)
    assert found.read(0, 10) == CONTENT[:10]
    (tmp_path / "a.bin").write_bytes(bytes(len(CONTENT)))
    os.utime(tmp_path / "a.bin", (1, 1))
    with pytest.raises(InputError, match=r"a\.bin was changed while it was read.*--restart"):
        found.read(200_000, 10)
    with pytest.raises(InputError, match="was changed"):
        found.check()


def test_closed_reader_reads_the_same_version_again(server: FileServer, tmp_path: Path) -> None:
    found = reader(server)
    assert found.read(0, 10) == CONTENT[:10]
    found.close()
    assert found.read(100_000, 10) == CONTENT[100_000:100_010]
    found.close()
    (tmp_path / "a.bin").write_bytes(CONTENT[::-1])
    with pytest.raises(InputError, match="was changed"):
        found.read(0, 10)


@pytest.mark.parametrize("fault", ["500", "503", "truncated", "reset"])
def test_temporary_faults_are_retried_and_then_reported_as_such(server: FileServer, fault: Fault) -> None:
    server.fault = failing(fault, 1, 2)
    found = reader(server)
    assert found.read(100_000, 1000) == CONTENT[100_000:101_000]
    server.fault = lambda _: fault
    with pytest.raises(NetworkError, match=r"a\.bin cannot be fetched: .*3 attempts.*rerun the command"):
        found.read(250_000, 1000)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("404", "does not exist.*HTTP 404"), ("403", "access to .* is denied.*HTTP 403"),
        ("no ranges", "does not support range requests; download"), ("other range", "bytes, stated as"),
        ("compressed", "is compressed"), ("no size", "does not state its range"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_permanent_faults_are_one_error_without_retries(
    server: FileServer, fault: Fault, message: str, first: bool
) -> None:
    server.fault = (lambda _: fault) if first else failing(fault)
    found = reader(server)
    with pytest.raises(InputError, match=message) as raised:
        if not first:
            assert found.size
        found.read(100_000, 1000)
    assert not isinstance(raised.value, NetworkError)
    assert len(server.requests) == (1 if first else 2)


def test_slow_server_is_a_network_error(server: FileServer) -> None:
    server.fault = lambda _: "slow"
    options = RemoteOptions(remote=True, remote_retries=1, remote_timeout=0.2)
    with pytest.raises(NetworkError, match=r"does not answer in time \(2 attempts\)"):
        _ = reader(server, options=options).size


def test_unreachable_server_is_a_network_error(server: FileServer) -> None:
    address = Address.parse("http://127.0.0.1:1/a.bin")
    with pytest.raises(NetworkError, match="no connection can be opened"):
        _ = RangeReader(address, http_of(address, OPTIONS), OPTIONS).size


def test_retry_after_is_honoured_within_bounds(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float | None] = []

    class Recorded(Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return False

    monkeypatch.setattr(http_module, "Event", Recorded)
    server.fault, server.retry_after = failing("503", 0), "7"
    assert reader(server).size
    assert waits == [7.0]
    server.fault, server.retry_after = lambda _: "503", "3600"
    with pytest.raises(NetworkError, match=r"1 attempt, and the server asks to wait 3,600 s"):
        _ = reader(server).size


def test_redirects_are_followed_once_and_renewed_when_they_expire(server: FileServer, tmp_path: Path) -> None:
    server.redirects = {"moved.bin": "/a.bin?signature=1"}
    found = reader(server, "moved.bin")
    assert found.read(0, 10) == CONTENT[:10]
    assert found.read(100_000, 10) == CONTENT[100_000:100_010]
    assert [one.path for one in server.requests] == ["/moved.bin", "/a.bin?signature=1", "/a.bin?signature=1"]
    server.redirects = {"moved.bin": "/a.bin?signature=2"}
    server.fault = lambda request: "403" if "signature=1" in request.path else None
    assert found.read(200_000, 10) == CONTENT[200_000:200_010]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/loop.bin", "redirected more than 5 times"), ("file:///etc/passwd", "redirected to file:///etc/passwd; only"),
        ("ftp://127.0.0.1/a", "redirected to ftp"), ("http://user:secret@127.0.0.1/a.bin", "with a user name"),
        ("//[", "is redirected to an invalid address"), ("https:a.bin", "is redirected to https:a.bin; only"),
        ("file:/etc/passwd?secret", "redirected to file:/etc/passwd"),
    ],
)  # fmt: skip
def test_redirects_elsewhere_are_refused(server: FileServer, location: str, message: str) -> None:
    server.redirects = {"loop.bin": location}
    with pytest.raises(InputError, match=message) as raised:
        _ = reader(server, "loop.bin").size
    assert "secret" not in str(raised.value)
    assert len(server.requests) <= 6


def test_redirect_from_https_to_http_is_refused_and_the_other_way_allowed(server: FileServer) -> None:
    address = Address.parse("https://example.org/a.tif")
    http = Http(address, address.url, OPTIONS)
    with pytest.raises(InputError, match="only https://"):
        http._next("https://example.org/a.tif", "http://example.org/a.tif")
    assert http._next("http://example.org/a.tif", "https://other.org/b.tif") == "https://other.org/b.tif"


def test_no_more_is_fetched_than_the_limit(server: FileServer) -> None:
    found = reader(server, options=RemoteOptions(remote=True, remote_limit=100_000 / (1 << 30)))
    found.fetch([(20_000, 90_000)])
    with pytest.raises(InputError, match="raise --remote-limit"):
        found.fetch([(100_000, 150_000)])
    assert server.sent < 100_000


def test_addresses_are_checked_and_shown_without_secrets() -> None:
    assert hidden("https://user:word@host/a/b.tif?X-Signature=word#part") == "https://host/a/b.tif"
    assert hidden("s3://bucket/a?b.tif") == "s3://bucket/a?b.tif"
    assert not is_address("C:/a.tif")
    assert not is_address("/vsicurl/http:/a.tif")
    address = Address.parse("https://host:8000/a/b%20c.tif?signature=word")
    assert (address.name, str(address), address.host) == ("b%20c.tif", "https://host:8000/a/b%20c.tif", "host")
    assert Address.parse("s3://a-bucket/x/y#z.tif").path == "x/y#z.tif"
    for text, message in (
        ("file:///etc/passwd", "starts with file://"), ("ftp://host/a.tif", "starts with ftp"),
        ("gs://bucket/a.tif", "starts with gs://"), ("https://host/", "names no file"), ("https://host/..", "no file"),
        ("https:///a.tif", "not valid"), ("https://host:word/a.tif", "not valid"), ("s3://UP/a.tif", "no bucket"),
        ("s3://bucket/", "names no file"), ("https://host/a b.tif", "spaces"), ("https://host/\n.tif", "spaces"),
        ("https://user:word@host/a.tif", "contains a user name or a password"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message) as raised:
            Address.parse(text)
        assert "word@" not in str(raised.value)


def test_without_remote_nothing_is_requested(server: FileServer) -> None:
    for call in (lambda: locate(server.url("a.bin"), RemoteOptions()),
                 lambda: read_document(server.url("a.bin"), RemoteOptions(), 10)):  # fmt: skip
        with pytest.raises(UsageError, match="allow it with --remote"):
            call()
    assert not server.requests
    assert locate("a.tif", RemoteOptions()) == LocalFile(Path("a.tif"))


def test_documents_are_fetched_whole_within_a_bound(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "item.json").write_bytes(b"{}")
    assert read_document(server.url("item.json"), OPTIONS, 100) == b"{}"
    with pytest.raises(InputError, match="more than 1,000 bytes"):
        read_document(server.url("a.bin"), OPTIONS, 1000)
    with pytest.raises(InputError, match="does not exist"):
        read_document(server.url("other.json"), OPTIONS, 1000)


def test_merged_ranges_cover_what_was_asked_and_waste_at_most_an_eighth() -> None:
    draw = random.Random(0)
    for _ in range(300):
        starts = [draw.randrange(5000) for _ in range(draw.randrange(1, 20))]
        ranges = [(start, start + draw.randrange(300)) for start in starts]
        found = merged(ranges, 400)
        wanted = {byte for start, stop in ranges for byte in range(start, stop)}
        covered = [byte for start, stop in found for byte in range(start, stop)]
        assert wanted <= set(covered)
        assert len(covered) == len(set(covered)) <= len(wanted) * 9 / 8
        assert all(0 < stop - start <= 400 for start, stop in found)


def test_store_keeps_bytes_in_any_order() -> None:
    store, kept = Store(), bytearray(1000)
    draw = random.Random(0)
    for _ in range(60):
        start = draw.randrange(1000)
        content = CONTENT[start : start + draw.randrange(1, 100)][: 1000 - start]
        store.add(start, content)
        kept[start : start + len(content)] = b"\1" * len(content)
        first, stop = sorted(draw.randrange(1001) for _ in range(2))
        gaps = {byte for a, b in store.missing(first, stop) for byte in range(a, b)}
        assert gaps == {byte for byte in range(first, stop) if not kept[byte]}
    for start, stop in ((0, 1000), (500, 501)):
        present = b"".join(CONTENT[byte : byte + 1] for byte in range(start, stop) if kept[byte])
        assert store.read(start, stop) == present
    store.close()


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "https://bucket.s3.us-east-1.amazonaws.com/a/b%20c.tif"),
        ({"AWS_REGION": "eu-west-1"}, "https://bucket.s3.eu-west-1.amazonaws.com/a/b%20c.tif"),
        ({"AWS_DEFAULT_REGION": "cn-north-1"}, "https://bucket.s3.cn-north-1.amazonaws.com.cn/a/b%20c.tif"),
        ({"AWS_S3_ENDPOINT": "store:9000", "AWS_HTTPS": "NO"}, "http://bucket.store:9000/a/b%20c.tif"),
        ({"AWS_S3_ENDPOINT": "store", "AWS_VIRTUAL_HOSTING": "FALSE"}, "https://store/bucket/a/b%20c.tif"),
        ({"AWS_ENDPOINT_URL": "http://store:9000"}, "http://store:9000/bucket/a/b%20c.tif"),
        ({"AWS_ENDPOINT_URL_S3": "http://b", "AWS_ENDPOINT_URL": "http://a"}, "http://b/bucket/a/b%20c.tif"),
        ({"AWS_ENDPOINT_URL": "http://a", "AWS_VIRTUAL_HOSTING": "YES"}, "http://bucket.a/a/b%20c.tif"),
    ],
)  # fmt: skip
def test_s3_addresses_follow_the_variables_of_gdal_and_botocore(environment: dict[str, str], url: str) -> None:
    assert _Place.of(environment).url("bucket", "a/b c.tif") == url


def test_s3_requests_are_signed_with_the_environment_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("botocore", reason="S3 needs the [remote] extra")
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    address = Address.parse("s3://bucket/a.tif")
    with pytest.raises(UsageError, match=r"requires credentials.*AWS_NO_SIGN_REQUEST=YES"):
        s3_http(address, OPTIONS, dict(os.environ))
    unsigned = s3_http(address, OPTIONS, {"AWS_NO_SIGN_REQUEST": "YES", "AWS_REQUEST_PAYER": "requester"})
    assert unsigned._sign is not None
    assert unsigned._sign("https://b/a", {"Range": "x"}) == {"Range": "x", "x-amz-request-payer": "requester"}
    keys = {"AWS_ACCESS_KEY_ID": "ID", "AWS_SECRET_ACCESS_KEY": "word", "AWS_SESSION_TOKEN": "token"}
    signed = s3_http(address, OPTIONS, keys)
    assert signed._sign is not None
    headers = signed._sign("https://bucket.s3.us-east-1.amazonaws.com/a.tif", {"Range": "bytes=0-1"})
    assert "Credential=ID/" in headers["Authorization"]
    assert "us-east-1/s3/aws4_request" in headers["Authorization"]
    assert "range" in headers["Authorization"]
    assert (headers["X-Amz-Security-Token"], headers["Range"]) == ("token", "bytes=0-1")
    assert "word" not in repr(headers)


@pytest.mark.parametrize("variables", [{"AWS_HTTPS": "maybe"}, {"AWS_S3_ENDPOINT": "http://a/b"}])
def test_invalid_s3_variables_are_refused(variables: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        s3_http(Address.parse("s3://bucket/a.tif"), OPTIONS, {**variables, "AWS_NO_SIGN_REQUEST": "YES"})


HEADERS = st.dictionaries(
    st.sampled_from(["ETag", "Last-Modified", "Content-Range", "Content-Encoding"]),
    st.text(max_size=20) | st.from_regex(r"bytes [0-9]{1,4}-[0-9]{1,4}/[0-9]{1,5}", fullmatch=True),
)


@given(st.sampled_from([200, 206, 412, 416]), HEADERS, st.binary(max_size=40), st.booleans())
def test_any_answer_is_the_bytes_that_were_asked_for_or_an_error(
    status: int, headers: dict[str, str], content: bytes, known: bool
) -> None:
    address = Address.parse("http://127.0.0.1/a.bin")

    class Fake:
        requests, fetched = 0, 0

        def get(self, *_: object) -> Response:
            return Response(status, headers, content)

    found = RangeReader(address, Fake(), OPTIONS)  # type: ignore[arg-type]
    if known:
        found._version = _Version(100, '"a"', None)
    with suppress(InputError):
        version, part = found._part((0, 40))
        assert part == content and len(part) == min(40, version.size)
        assert version.identity.value


def test_identity_text_states_its_kind() -> None:
    assert str(Identity("etag", "ab")) == "etag ab"
    assert Request(0, "/", {}).sent == 0
