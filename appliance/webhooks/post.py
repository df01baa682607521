"""One attempt: a POST to addresses that were checked, and to no others.

Owns: the connection, its deadline, how much of an answer is read, and what an answer means.
Never: looks a name up, follows a redirect, uses a proxy, keeps a connection, or keeps an answer.
Read next: ``message`` (what is sent), ``egress.outbound`` (which addresses).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from appliance.egress.outbound import Place

_ANSWER_BYTES_MAX = 64 * 1024
_ADDRESSES_MAX = 3
_GONE = 410
_BUSY = (429, 503)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How an attempt ended: ``ok``, or what was wrong; ``status`` is 0 without an answer."""

    code: str
    status: int = 0
    retry_after_s: int = 0


def trust_of(ca_file: str) -> ssl.SSLContext:
    """What servers' certificates are checked with: the system's CAs and those of a file. Blocking.

    Raises:
        OSError: the file cannot be read, or holds no certificate (``ssl.SSLError``).
    """
    trust = ssl.create_default_context()
    if ca_file:
        trust.load_verify_locations(cafile=ca_file)
    return trust


async def post(
    place: Place,
    addresses: Sequence[str],
    headers: Sequence[tuple[str, str]],
    body: bytes,
    *,
    trust: ssl.SSLContext,
    timeout_s: float,
) -> Answer:
    """Send it to the first address that can be connected to; never raises for what others do.

    Args:
        place: whose path, Host header and certificate name count.
        addresses: where it really goes.
        headers: besides Host and Content-Length.
        body: the request's.
        trust: for https.
        timeout_s: for all of it, connecting included.
    """
    try:
        async with asyncio.timeout(timeout_s):
            for address in addresses[:_ADDRESSES_MAX]:
                try:
                    return await _to_address(place, address, headers, body, trust)
                except httpx.ConnectError as error:
                    answer = Answer(code="tls" if _is_tls(error) else "unreachable")
            return answer
    except TimeoutError:
        return Answer(code="timeout")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError):
        return Answer(code="protocol")


async def _to_address(
    place: Place,
    address: str,
    headers: Sequence[tuple[str, str]],
    body: bytes,
    trust: ssl.SSLContext,
) -> Answer:
    url = httpx.URL(
        scheme=place.scheme, host=address, port=place.port, raw_path=place.target.encode("ascii")
    )
    request = httpx.Request(
        "POST",
        url,
        headers=[("host", place.authority), *headers],
        content=body,
        extensions={"sni_hostname": place.host},
    )
    async with httpx.AsyncHTTPTransport(verify=trust, trust_env=False, retries=0) as transport:
        response = await transport.handle_async_request(request)
        try:
            read = 0
            async for piece in response.aiter_raw():
                read += len(piece)
                if read > _ANSWER_BYTES_MAX:
                    break
            return _answer(response)
        finally:
            await response.aclose()


def _answer(response: httpx.Response) -> Answer:
    status = response.status_code
    if 200 <= status < 300:
        return Answer(code="ok", status=status)
    if status == _GONE:
        return Answer(code="gone", status=status)
    if 300 <= status < 400:
        return Answer(code="redirected", status=status)
    asked = response.headers.get("retry-after", "") if status in _BUSY else ""
    is_number = asked.isascii() and asked.isdigit() and len(asked) <= 6
    return Answer(
        code=f"http-{status}", status=status, retry_after_s=int(asked) if is_number else 0
    )


def _is_tls(error: BaseException) -> bool:
    """Whether a connection was made and its certificate was not believed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False
