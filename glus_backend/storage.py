"""Task address to local file: tokens, cache, size cap, atomic writes. Knows HTTP; not tasks or masks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import IO
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

import requests
from requests.auth import AuthBase

from glus_backend.contracts import StudioAccess
from glus_backend.errors import FileTooLarge, NotAllowed, StorageError
from glus_backend.settings import Settings

log = logging.getLogger(__name__)

TIMEOUT = (5.0, 30.0)  # seconds to connect, and between two pieces of a body
MAX_REDIRECTS = 5
DOWNLOADS = 4  # at a time, for the frames of one clip
_CHUNK = 1 << 18
_ACCESS_SECONDS = 240.0  # Label Studio's access tokens live 300
_REDIRECTS = {301, 302, 303, 307, 308}
_PICTURES = ((b"\xff\xd8\xff", ".jpg"), (b"\x89PNG\r\n\x1a\n", ".png"), (b"BM", ".bmp"))


class Storage:
    """Files of tasks, fetched once and asked for again only if they changed."""

    def __init__(self, settings: Settings) -> None:
        self._files = settings.cache_dir / "files"
        self._clips = settings.cache_dir / "clips"
        self._cap = settings.max_download_mb << 20
        self._roots = tuple(root.expanduser().resolve() for root in settings.local_roots)
        self._tokens = _Tokens()

    def fetch(self, url: str, access: StudioAccess) -> Path:
        """A local file with the contents of `url`: http(s), a path on Label Studio, or an allowed file."""
        with _session() as session:
            return self._fetch(session, url, access)

    def frame_folder(self, urls: Sequence[str], access: StudioAccess) -> Path:
        """A folder with the frames as 00000.jpg, 00001.jpg, ... in the order of `urls`.

        Its name is a digest of the frames' contents: the same clip, under whatever address, is the same
        folder.
        """
        with (
            _session() as session,
            ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="download") as pool,
        ):
            files = list(pool.map(lambda url: self._fetch(session, url, access), urls))
        digest = hashlib.sha256()
        names = []
        for index, (file, url) in enumerate(zip(files, urls, strict=True)):
            names.append(f"{index:05d}{_picture_suffix(file, url)}")
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        folder = self._clips / digest.hexdigest()
        if folder.is_dir():
            return folder
        self._clips.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=self._clips))
        try:
            for file, name in zip(files, names, strict=True):
                self._place(file, part / name)
            part.rename(folder)
        except OSError:
            shutil.rmtree(part, ignore_errors=True)
            if not folder.is_dir():  # else another request finished the same clip first
                raise
        return folder

    def _place(self, source: Path, target: Path) -> None:
        """Our own copy costs nothing as a hard link; somebody else's file may change under us, so it is
        copied.
        """
        if source.parent == self._files:
            with contextlib.suppress(OSError):  # not every file system has links
                os.link(source, target)
                return
        shutil.copyfile(source, target)

    def _fetch(self, session: requests.Session, url: str, access: StudioAccess) -> Path:
        local = self._local_file(url)
        if local is not None:
            return local
        return self._download(session, _absolute(url, access), access)

    def _local_file(self, url: str) -> Path | None:
        """The file that a local address means; None for addresses on a host."""
        is_file_url = url.startswith("file:")
        if not is_file_url and not (url.startswith("/") and not url.startswith("//")):
            return None
        path = Path(unquote(_parts(url).path) if is_file_url else url).resolve()
        allowed = any(path.is_relative_to(root) for root in self._roots)  # resolved: a link may not lead out
        if allowed and path.is_file():
            return path
        if is_file_url and allowed:
            raise StorageError(f"{url} does not exist on this machine, or is no file")
        if is_file_url:
            roots = ", ".join(str(root) for root in self._roots) or "none"
            raise NotAllowed(
                f"{url} is not below an allowed folder ({roots}); add its folder to GLUS_LOCAL_ROOTS, or "
                "serve it over HTTP"
            )
        return None  # a path on Label Studio, such as /data/upload/3/clip.mp4

    def _download(self, session: requests.Session, url: str, access: StudioAccess) -> Path:
        self._files.mkdir(parents=True, exist_ok=True)
        target = self._files / hashlib.sha256(url.encode()).hexdigest()
        validators = target.with_suffix(".json")
        conditions = _conditions(validators) if target.exists() else {}
        shown = _shown(url)
        try:
            with self._open(session, url, access, conditions) as response:
                if response.status_code == 304 and conditions:
                    return target
                _check(response, shown, at_studio=_origin(response.url) == _origin(access.url or ""))
                with _part_of(target) as part:
                    self._copy(response, part, shown)
                    validators.unlink(missing_ok=True)  # never the old validators beside the new contents
                _remember_conditions(validators, response)
        except requests.RequestException as error:
            raise StorageError(
                f"could not fetch {shown}: {_reason(error)}; check that this machine can reach it"
            ) from error
        return target

    @contextlib.contextmanager
    def _open(
        self, session: requests.Session, url: str, access: StudioAccess, conditions: dict[str, str]
    ) -> Iterator[requests.Response]:
        """GET, following redirects by hand: at each hop our token goes along only to Label Studio itself."""
        headers = {"Accept-Encoding": "identity", **conditions}
        here = url
        for _ in range(MAX_REDIRECTS + 1):
            token = None
            if access.url and access.key and _origin(here) == _origin(access.url):
                token = self._tokens.header(session, access.url, access.key)
            response = session.get(
                here, headers=headers, auth=_Token(token), stream=True, allow_redirects=False, timeout=TIMEOUT
            )
            with response:
                location = response.headers.get("Location")
                if response.status_code not in _REDIRECTS or not location:
                    yield response
                    return
                here = urljoin(here, location)
                if _parts(here).scheme not in {"http", "https"}:
                    raise NotAllowed(f"{_shown(url)} redirects to {_shown(here)}; only http and https are followed")
        raise StorageError(f"{_shown(url)} redirects more than {MAX_REDIRECTS} times; give the address it ends at")

    def _copy(self, response: requests.Response, part: IO[bytes], shown: str) -> None:
        announced = response.headers.get("Content-Length", "")
        size = int(announced) if announced.isdigit() else 0
        written = 0
        for chunk in response.iter_content(_CHUNK):
            written += len(chunk)
            if max(size, written) > self._cap:
                raise FileTooLarge(
                    f"{shown} is larger than {self._cap >> 20} MiB; cut the clip, or raise GLUS_MAX_DOWNLOAD_MB"
                )
            part.write(chunk)
        if size and written != size:
            raise StorageError(f"{shown} broke off after {written} of {size} bytes; try again")


class _Token(AuthBase):
    """Our own Authorization header or none. Passing it keeps requests from adding one out of ~/.netrc."""

    def __init__(self, header: str | None) -> None:
        self._header = header

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.pop("Authorization", None)
        if self._header:
            request.headers["Authorization"] = self._header
        return request


class _Tokens:
    """Authorization headers: a legacy token as it is, a personal one (a JWT) exchanged for a key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._access: dict[tuple[str, str], tuple[str, float]] = {}

    def header(self, session: requests.Session, base: str, key: str) -> str:
        if key.count(".") != 2:
            return f"Token {key}"
        with self._lock:
            access, until = self._access.get((base, key), ("", 0.0))
            if time.monotonic() >= until:
                access = _refresh(session, base, key)
                self._access[base, key] = (access, time.monotonic() + _ACCESS_SECONDS)
        return f"Bearer {access}"


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, readable by its owner only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _part_of(path) as part:
        part.write(data)


@contextlib.contextmanager
def _part_of(target: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `target` that takes its name when everything went well."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=target.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _session() -> requests.Session:
    session = requests.Session()
    # A cookie goes to every port of its host, so also to somebody else's server; we need none.
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    return session


def _refresh(session: requests.Session, base: str, key: str) -> str:
    response = session.post(
        f"{base.rstrip('/')}/api/token/refresh/",
        json={"refresh": key},
        auth=_Token(None),
        allow_redirects=False,
        timeout=TIMEOUT,
    )
    with response:
        access = None
        if response.ok and "json" in response.headers.get("Content-Type", ""):
            access = response.json().get("access")
        if not isinstance(access, str):
            raise StorageError(
                f"Label Studio at {base} did not accept our personal access token (status "
                f"{response.status_code} "
                "from /api/token/refresh/); make a new one on its Account page and set LABEL_STUDIO_API_KEY"
            )
    return access


def _absolute(url: str, access: StudioAccess) -> str:
    """The full address; one without a host is Label Studio's."""
    scheme = _parts(url).scheme
    if scheme in {"http", "https"}:
        return url
    if url.startswith("//"):
        raise NotAllowed(f"{url} names a host without saying http or https; write the whole address")
    if scheme:
        raise NotAllowed(
            f"{_shown(url)} starts with {scheme}:, which we do not open; use http(s), or let Label Studio "
            "make presigned addresses of its cloud storage"
        )
    if not access.url:
        raise StorageError(
            f"{url} is a path on Label Studio, and where that is was not said yet; set LABEL_STUDIO_URL, or "
            "connect the backend once more in the project's settings"
        )
    base = _parts(access.url)
    prefix = base.path.rstrip("/")
    path = url if url.startswith("/") else f"/{url}"
    if prefix and path.startswith(f"{prefix}/"):  # a Label Studio that does not live at the root writes it in
        prefix = ""
    return f"{base.scheme}://{base.netloc}{prefix}{path}"


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # read here, because it is checked only when read
    except ValueError as error:
        raise StorageError(f"{url!r} is not an address: {error}") from error
    return parts


def _origin(url: str) -> tuple[str, str, int] | None:
    parts = _parts(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return None
    return parts.scheme, parts.hostname.lower(), parts.port or (443 if parts.scheme == "https" else 80)


def _check(response: requests.Response, shown: str, *, at_studio: bool) -> None:
    status = response.status_code
    if status == 200:
        return
    if status in {401, 403} and at_studio:
        raise StorageError(
            f"Label Studio answered {status} for {shown}: our token was not accepted. The one that it sends "
            "by itself works only while legacy tokens are enabled; set LABEL_STUDIO_URL and "
            "LABEL_STUDIO_API_KEY to a "
            "token from its Account page"
        )
    raise StorageError(f"{shown} was answered with status {status} ({response.reason}); wanted the file")


def _conditions(validators: Path) -> dict[str, str]:
    if not validators.exists():
        return {}
    kept: dict[str, str] = json.loads(validators.read_bytes())
    return kept


def _remember_conditions(validators: Path, response: requests.Response) -> None:
    """Keep what lets the server say "not changed" next time."""
    names = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}
    kept = {ask: response.headers[given] for given, ask in names.items() if given in response.headers}
    if kept:
        write_atomically(validators, json.dumps(kept).encode())


def _picture_suffix(file: Path, url: str) -> str:
    with file.open("rb") as stream:
        start = stream.read(16)
    for magic, suffix in _PICTURES:
        if start.startswith(magic):
            return suffix
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return ".webp"
    raise StorageError(
        f"{_shown(url)} is not a JPEG, PNG, BMP or WebP picture: it starts with {start!r}; "
        "an HTML start is often a login page"
    )


def _shown(url: str) -> str:
    """An address for messages and logs: without its query, which may hold a signature, or a password."""
    parts = _parts(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl()


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT[1]:g} seconds"
    return type(error).__name__
