"""Requests objects from S3 and compatible stores: addresses and signatures from the environment only.

No configuration files and no metadata of an instance are read. The variables are those of GDAL's ``/vsis3/``, and
botocore's ``AWS_ENDPOINT_URL``. Signatures are botocore's (AWS Signature Version 4).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from misgnet_runtime.errors import UnavailableError, UsageError
from misgnet_runtime.parsers import YES
from misgnet_runtime.raster.remote.address import Address
from misgnet_runtime.raster.remote.http import Http, Sign
from misgnet_runtime.raster.remote.options import RemoteOptions

_ON, _OFF = (*YES, "on"), ("no", "false", "0", "off")


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a store is, and how its buckets are addressed."""

    scheme: str
    host: str  # with port
    virtual: bool  # the bucket is part of the host name, not of the path
    region: str

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> _Place:
        region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or "us-east-1"
        own = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
        endpoint = environment.get("AWS_S3_ENDPOINT") or own
        if endpoint is None:
            suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
            endpoint = f"s3.{region}.{suffix}"
        if "://" not in endpoint:
            endpoint = f"{'https' if _flag(environment, 'AWS_HTTPS', True) else 'http'}://{endpoint}"
        parts = urlsplit(endpoint)
        if parts.scheme not in ("https", "http") or not parts.hostname or "@" in parts.netloc or parts.path.strip("/"):
            raise UsageError("the S3 endpoint in the environment is not valid; expected https://HOST or HOST:PORT")
        # Like botocore, a store that only AWS_ENDPOINT_URL names is addressed by paths.
        virtual = _flag(environment, "AWS_VIRTUAL_HOSTING", bool(environment.get("AWS_S3_ENDPOINT")) or own is None)
        return cls(scheme=parts.scheme, host=parts.netloc, virtual=virtual, region=region)

    def url(self, bucket: str, key: str) -> str:
        path = quote(key, safe="/~")
        if self.virtual and "." not in bucket:  # a certificate covers one part of a host name
            return f"{self.scheme}://{bucket}.{self.host}/{path}"
        return f"{self.scheme}://{self.host}/{bucket}/{path}"


def s3_http(address: Address, options: RemoteOptions, environment: Mapping[str, str] = os.environ) -> Http:
    """Returns what sends requests for an object.

    Raises:
        UsageError: The environment has no credentials, or an invalid endpoint.
        UnavailableError: botocore is missing.
    """
    place = _Place.of(environment)
    headers = {"x-amz-request-payer": "requester"} if environment.get("AWS_REQUEST_PAYER") == "requester" else {}
    sign: Sign
    if _flag(environment, "AWS_NO_SIGN_REQUEST", False):
        sign = lambda _url, given: {**given, **headers}  # noqa: E731
    else:
        sign = _signing(address, environment, place.region, headers)
    return Http(address, place.url(address.host, address.path), options, sign)


def _signing(address: Address, environment: Mapping[str, str], region: str, headers: Mapping[str, str]) -> Sign:
    key, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if not (key and secret):
        raise UsageError(
            f"{address} requires credentials, and the environment has none: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_NO_SIGN_REQUEST=YES for a public bucket"
        )
    try:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials
    except ImportError as error:
        raise UnavailableError("an s3:// raster requires botocore: pip install 'misgnet-export[remote]'") from error
    credentials = Credentials(key, secret, environment.get("AWS_SESSION_TOKEN"))

    def sign(url: str, given: Mapping[str, str]) -> Mapping[str, str]:
        request = AWSRequest("GET", url, headers={**given, **headers})
        S3SigV4Auth(credentials, "s3", region).add_auth(request)
        return dict(request.headers)

    return sign


def _flag(environment: Mapping[str, str], name: str, default: bool) -> bool:
    """Returns whether a variable is set to yes; raises UsageError for anything but yes and no."""
    text = environment.get(name, "").lower()
    if text and text not in (*_ON, *_OFF):
        raise UsageError(f"{name} is '{text[:32]}' in the environment; expected YES or NO")
    return text in _ON if text else default
