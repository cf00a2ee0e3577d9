# SPDX-License-Identifier: Apache-2.0
"""One file over HTTP: taken up where it stopped, tried again while that helps. Knows nothing of models.

The bytes go to a part file; beside it lies what is needed to go on safely (URL, validator, length). HTTP semantics:
RFC 9110, sections 13.1.5 (If-Range), 14 (ranges) and 15 (status codes). ``requests`` does TLS, proxies
(HTTPS_PROXY), certificates of a company (REQUESTS_CA_BUNDLE) and logins (netrc); it has no resume, nor has pooch.
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from tqdm import tqdm

from mindformers.atomic import write_text
from mindformers.errors import CheckpointError
from mindformers.tools.logger import get_logger

__all__ = ["Patience", "part_path", "readable", "state_path", "transfer"]

logger = get_logger(__name__)

_CHUNK = 1 << 20
_MAX_REDIRECTS = 8
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_PAGES = {"text/html", "application/xhtml+xml", "application/xml", "text/xml", "application/json"}
_PAGE_STARTS = (b"<!doctype", b"<html", b"<?xml")
_BAD_ADDRESS = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
)
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_NO_RANGE = re.compile(r"bytes \*/(\d+)")


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds, and how often to try.

    Args:
        connect: for a connection.
        silence: for the next byte.
        tries: attempts in a row that bring nothing new.
        first_wait: before the second attempt; doubled before each further one.
        longest_wait: between attempts, even when the server asks for more.
        slow_window: after this long at less than ``slow_rate`` a new connection is made.
        slow_rate: bytes per second.
        report: between log lines where there is no terminal for a progress bar.
    """

    connect: float = 10.0
    silence: float = 30.0
    tries: int = 5
    first_wait: float = 1.0
    longest_wait: float = 60.0
    slow_window: float = 60.0
    slow_rate: float = 1024.0
    report: float = 60.0


@dataclass(frozen=True)
class _State:
    """What a part file is a part of.

    Args:
        url: where it comes from.
        validator: ETag or Last-Modified of the version; empty when the server gave none.
        total: length of the whole file; None when unknown.
    """

    url: str
    validator: str = ""
    total: int | None = None


class _AgainError(Exception):
    """The attempt failed, the next may not; ``wait`` is what the server asked for, in seconds."""

    def __init__(self, message: str, wait: float | None = None):
        super().__init__(message)
        self.wait = wait


def part_path(target: Path) -> Path:
    """Where the bytes of ``target`` are gathered."""
    return target.with_name(target.name + ".part")


def state_path(target: Path) -> Path:
    """Where it is written what the part file is a part of."""
    return target.with_name(target.name + ".part.json")


def readable(size: float) -> str:
    """A number of bytes for a person."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"


def transfer(url: str, target: Path, *, size: int | None, trusted: bool, patience: Patience) -> bool:
    """Bring the whole file into ``part_path(target)``.

    Args:
        url: http or https.
        target: the final path; its folder exists.
        size: length the file must have, when known.
        trusted: the caller compares a checksum afterwards, so parts may be joined without a validator.
        patience: waits and tries.

    Returns:
        Whether bytes of an earlier call are in the file.

    Raises:
        CheckpointError: refused, absent, not a file, of another length, no space, or too many failed attempts.
            What arrived stays in the part file, unless it cannot be part of the file.
    """
    job = _Transfer(url, target, size, trusted, patience)
    resumed = job.start()
    failures, furthest = 0, job.have()
    while True:
        try:
            with requests.Session() as session:
                job.attempt(session)
            return resumed
        except _AgainError as problem:
            failures = 0 if job.have() > furthest else failures + 1
            furthest = max(furthest, job.have())
            if failures >= patience.tries:
                kept = f". {readable(job.have())} are kept in {job.part}; the same command goes on from there"
                raise CheckpointError(
                    f"download of {url} failed {failures} times in a row: {problem}{kept if job.have() else ''}"
                ) from problem
            wait = min(problem.wait or patience.first_wait * 2 ** max(failures - 1, 0), patience.longest_wait)
            logger.warning("download of %s: %s; next attempt in %.0f s", target.name, problem, wait)
            time.sleep(wait)


class _Transfer:
    """One file on its way; see :func:`transfer`."""

    def __init__(self, url: str, target: Path, size: int | None, trusted: bool, patience: Patience):
        self.url, self.target, self.size, self.trusted, self.patience = url, target, size, trusted, patience
        self.part, self.state_file = part_path(target), state_path(target)
        self.state = _State(url, total=size)

    def have(self) -> int:
        """Bytes of the part file."""
        return self.part.stat().st_size if self.part.exists() else 0

    def start(self) -> bool:
        """Take up a part file of an earlier call, when it is of this URL; returns whether there is one."""
        try:
            values = json.loads(self.state_file.read_text(encoding="utf-8"))
            state = _State(**values)
            fits = state.url == self.url and isinstance(state.validator, str)
            fits = fits and (state.total is None or isinstance(state.total, int))
        except (OSError, ValueError, TypeError):  # absent, or written by somebody else
            fits = False
        if not fits or not self.have():
            self._discard()
            return False
        self.state = state
        return True

    def attempt(self, session: requests.Session) -> None:
        """One connection; returns when the file is complete."""
        have = self.have()
        if have and have == self.state.total:
            return
        if have and not (self.state.validator or self.trusted):
            self._discard()  # nothing would tell parts of two versions apart
            have = 0
        headers = {"Accept-Encoding": "identity", "User-Agent": "mindformers"}
        if have:
            headers["Range"] = f"bytes={have}-"
            if self.state.validator:
                headers["If-Range"] = self.state.validator
        try:
            with self._request(session, headers) as response:
                if response.status_code == 416:
                    self._nothing_left(response, have)
                    return
                offset, total = self._placed(response, have)
                self._check_space(total, offset)
                if not offset:
                    self._discard()  # before the new state is written: a kill in between must not join two versions
                self._write_state(_State(self.url, _validator(response.headers), total))
                self._copy(response, offset, total)
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise CheckpointError(
                    f"{self.url}: the server's certificate is not valid ({_reason(error)}). Behind a company's "
                    "proxy, name its certificates in the environment variable REQUESTS_CA_BUNDLE"
                ) from error
            raise _AgainError(_reason(error)) from error
        except _BAD_ADDRESS as error:
            raise CheckpointError(f"{self.url}: not an address to download from ({error})") from error
        except urllib3.exceptions.ProtocolError as error:
            raise self._ended() from error
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _AgainError(_reason(error)) from error
        if self.state.total is not None and self.have() != self.state.total:
            raise self._ended()

    def _ended(self) -> _AgainError:
        return _AgainError(f"the connection ended after {self.have()} of {self.state.total or 'unknown'} bytes")

    def _request(self, session: requests.Session, headers: Mapping[str, str]) -> requests.Response:
        """The answer after redirects, 200, 206 or 416; never from https to anything else, never to a local file."""
        url = self.url
        timeout = (self.patience.connect, self.patience.silence)
        for _ in range(_MAX_REDIRECTS):
            response = session.get(url, headers=dict(headers), stream=True, timeout=timeout, allow_redirects=False)
            if not response.is_redirect:
                return self._answer(response)
            response.close()
            goal = urljoin(url, response.headers["Location"])
            old, new = urlsplit(url).scheme, urlsplit(goal).scheme
            if new not in ("http", "https") or (old == "https" and new != "https"):
                raise CheckpointError(
                    f"{url} leads to {goal}: not followed (from {old} to {new}; only https, or from http to http)"
                )
            url = goal
        raise CheckpointError(f"{self.url}: more than {_MAX_REDIRECTS} redirects")

    def _answer(self, response: requests.Response) -> requests.Response:
        """The response, when it can hold the file."""
        code = response.status_code
        if code in (200, 206, 416):
            return response
        response.close()
        text = f"HTTP {code} {response.reason or ''}".strip()
        if code in _TRY_AGAIN:
            wait = response.headers.get("Retry-After", "")
            raise _AgainError(text, float(wait) if wait.isdigit() else None)
        meaning = {401: "a login is needed", 403: "access is refused", 404: "there is no such file", 410: "it is gone"}
        raise CheckpointError(f"{response.url}: {text}" + (f" ({meaning[code]})" if code in meaning else ""))

    def _nothing_left(self, response: requests.Response, have: int) -> None:
        """The server has nothing behind our last byte: either all is here, or the part is not of this file."""
        match = _NO_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match and int(match[1]) == have and self.size in (None, have):
            self.state = _State(self.url, self.state.validator, have)
            return
        self._discard()
        raise _AgainError(f"the server has no byte {have}, so the part that was here is of another file")

    def _placed(self, response: requests.Response, have: int) -> tuple[int, int | None]:
        """Where the body belongs in the file, and the length of the whole."""
        headers = response.headers
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in _PAGES:
            raise CheckpointError(f"{response.url} answered with a page ({kind}), not with a file: a login or a proxy?")
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise CheckpointError(
                f"{response.url} answered with {headers['Content-Encoding']} encoding, which was not asked for"
            )
        length = headers.get("Content-Length", "")
        offset, total = 0, int(length) if length.isdigit() else None
        if response.status_code == 206:
            match = _RANGE.fullmatch(headers.get("Content-Range", ""))
            version = _validator(headers)
            if not match or int(match[1]) != have or (version and version != (self.state.validator or version)):
                self._discard()
                raise _AgainError(f"the answer does not go on at byte {have} of the same file")
            offset, total = have, self.state.total if match[3] == "*" else int(match[3])
        if self.size is not None and total not in (None, self.size):
            raise CheckpointError(
                f"{response.url} has {total} bytes, the published file has {self.size}: it is another file"
            )
        if total is None and not (self.trusted or headers.get("Transfer-Encoding", "").lower() == "chunked"):
            raise CheckpointError(f"{response.url} does not say how long the file is, so a cut would go unseen")
        return offset, self.size if total is None else total

    def _check_space(self, total: int | None, offset: int) -> None:
        free = shutil.disk_usage(self.part.parent).free + self.have() - offset
        if total is not None and total - offset > free:
            raise CheckpointError(
                f"{self.target.name} needs {readable(total - offset)} more, {readable(free)} are free in "
                f"{self.part.parent}: make room, or set CHECKPOINT_DOWNLOAD_FOLDER to another disk"
            )

    def _copy(self, response: requests.Response, offset: int, total: int | None) -> None:
        """Write the body at ``offset``, with a progress bar on a terminal and some log lines elsewhere."""
        with open(self.part, "r+b" if self.part.exists() else "wb") as file:
            file.seek(offset)
            file.truncate()
            bar = tqdm(
                total=total, initial=offset, unit="B", unit_scale=True, desc=self.target.name, disable=None,
                file=sys.stderr,
            )  # fmt: skip
            with bar:
                self._pump(response.raw, file, bar, total)

    def _pump(self, source: Any, file: BinaryIO, bar: tqdm, total: int | None) -> None:
        begin = place = file.tell()
        window, mark = time.monotonic(), place
        reported = window
        while chunk := source.read1(_CHUNK, decode_content=False):
            if place == begin == 0 and chunk.lstrip()[:9].lower().startswith(_PAGE_STARTS):
                self._discard()
                raise CheckpointError(f"{self.url} answered with a page, not with a file: a login or a proxy?")
            file.write(chunk)
            file.flush()  # a kill loses nothing that has arrived
            place += len(chunk)
            bar.update(len(chunk))
            now = time.monotonic()
            if now - window >= self.patience.slow_window:
                if place - mark < self.patience.slow_rate * (now - window):
                    raise _AgainError(f"only {place - mark} bytes in {now - window:.0f} s")
                window, mark = now, place
            if bar.disable and now - reported >= self.patience.report:
                reported = now
                whole = f" of {readable(total)}" if total else ""
                logger.info("%s: %s%s are here", self.target.name, readable(place), whole)

    def _write_state(self, state: _State) -> None:
        if state == self.state and self.state_file.exists():
            return
        write_text(self.state_file, json.dumps(asdict(state)) + "\n")
        self.state = state

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.state_file.unlink(missing_ok=True)
        self.state = _State(self.url, total=self.size)


def _validator(headers: Mapping[str, str]) -> str:
    """What If-Range may carry: a strong ETag, else the date of the last change."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _reason(error: BaseException) -> str:
    """The innermost message of a chain of network errors, which is the one that says something."""
    while True:
        inner = [getattr(error, "reason", None), *error.args]
        deeper = next((part for part in inner if isinstance(part, BaseException)), None)
        if deeper is None:
            break
        error = deeper
    text = re.sub(r"^<[^>]*>: |^[A-Za-z]+\([^)]*\): ", "", str(error)) or type(error).__name__
    return text[:200]
