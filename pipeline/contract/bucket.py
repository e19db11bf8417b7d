"""A data root in a bucket, of any store that speaks S3.

Copies of what was read lie in a folder on this machine, under the same names; it may be deleted at any time.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import obstore
from obstore.exceptions import AlreadyExistsError, InvalidPathError, PreconditionError
from obstore.store import S3Store

from pipeline.contract.layout import Layout
from pipeline.contract.seam import step
from pipeline.contract.settings import Bucket
from pipeline.contract.store import Changed, Found, LogState, RawFound, RawSource, Signature, Store, StoreError

_T = TypeVar("_T")

BLOCK_BYTES = 8 * 2**20  # of an object that are asked for at once
AT_ONCE = 4  # requests for parts of one object, or for several objects
ATTEMPTS = 8
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds; twice as long each time, less up to a half by chance
CONNECT_SECONDS = 5
REQUEST_SECONDS = 30
ABANDONED_SECONDS = 3600  # before the newest copy: an unfinished one of then is nobody's any more
NOTES = "superseded"  # folder of notes of what was superseded when


class BucketStore(Store):
    """A data root in a bucket. Our files are sent whole and fetched whole; raw logs are read a block at a time."""

    def __init__(self, bucket: Bucket, cache: Path, cache_size: int, patience: float) -> None:
        """cache: the folder for copies, of `cache_size` bytes. patience: seconds that a request may be repeated."""
        named = hashlib.sha256(f"{bucket.endpoint or ''} {bucket}".encode()).hexdigest()[:16]
        super().__init__(Layout(cache / named))
        _make_private(self.layout.root)
        self._bucket = bucket
        self._patience = patience
        self._request_seconds = min(patience / 2, REQUEST_SECONDS)
        self._cache = _Cache(self.layout, cache_size)
        self._graces: dict[str, tuple[float, frozenset[str]]] | None = None  # by note: moment, and keys
        seconds = timedelta(seconds=self._request_seconds)
        self._client = S3Store(
            bucket.name,
            prefix=bucket.prefix or None,
            config=cast("Any", _options(bucket)),
            client_options={
                "allow_http": _is_plain(bucket),
                "timeout": seconds,
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            },
            retry_config={"max_retries": 0, "retry_timeout": seconds},  # retried here, the cut answers too
        )

    # --- as a whole --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        # Nothing of ours is behind "~": an empty page is as good as a full one.
        self.tried("LIST", self.layout.root, lambda: list(obstore.list(self._client, offset="~")))

    def name_of(self, path: Path) -> str:
        key = self._key(path)
        return f"{self._bucket}/{key}" if key else str(self._bucket)

    def tried(self, what: str, path: Path, call: Callable[[], _T]) -> _T:
        """What `call` gives, tried until it does or there is no sense in it. Raises StoreError, or what is not of the
        store.
        """
        begun = time.monotonic()
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return call()
            except (AlreadyExistsError, PreconditionError):
                raise
            except InvalidPathError as error:
                said = str(error).split("\n", 1)[0]
                raise StoreError(f"{what} {self.name_of(path)}: {said}; rename that object, or delete it") from None
            except Exception as error:
                answer = _answer(error)
                if answer is None:
                    raise
                if isinstance(error, FileNotFoundError) and answer.code != "NoSuchBucket":
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.name_of(path)) from None
                if answer.status == 416:  # no part of an object that has no bytes can be had
                    raise OSError(errno.EIO, "it is empty", self.name_of(path)) from None
                taken = time.monotonic() - begun
                if not answer.may_pass or attempt == ATTEMPTS or taken > self._patience:
                    tries = f"{attempt} tries in {taken:.0f} s" if attempt > 1 else "1 try"
                    raise StoreError(self._sentence(answer, f"{what} {self.name_of(path)}", tries)) from None
                pause = min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE)
                time.sleep(pause * random.uniform(0.5, 1))
        raise AssertionError("unreachable")

    def _sentence(self, answer: _Answer, request: str, tries: str) -> str:
        bucket = self._bucket
        said = f"{request}: {answer.text}"
        if answer.code == "NoSuchBucket":
            return f"{said}; there is no bucket {bucket.name} at {bucket.endpoint or 'AWS'}: see to KEYTALLY_DATA"
        if answer.code in _OTHER_REGION:
            return f"{said}; the bucket is not in the region {bucket.region}: see to AWS_REGION"
        if answer.code in _WRONG_KEY:
            return f"{said}; see to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        if answer.code == "RequestTimeTooSkewed":
            return f"{said}; see to the clock of this machine"
        if answer.status in (401, 403):
            return f"{said}; the key may not do this, or the bucket is another's: see to its rights"
        return f"{said} ({tries}); running the command again is safe"

    # --- our own files -----------------------------------------------------------------------------------------------

    def fetch(self, path: Path, *, anew: bool = False) -> Path:
        if anew or not self._cache.touch(path):
            step("fetch a file")
            self._fetch(path)
        return path

    def fetch_all(self, paths: Sequence[Path], held: Path) -> Sequence[Path]:
        # By links of their own: that another process makes room for its copies takes none of these away.
        links = {
            path: held / path.relative_to(self.layout.root)
            for path in paths
            if not path.is_relative_to(self.layout.scratch)
        }
        for folder in {link.parent for link in links.values()}:
            folder.mkdir(parents=True, exist_ok=True)

        def hold(path: Path) -> None:
            while True:
                if not self._cache.touch(path):
                    self._fetch(path)
                with suppress(FileNotFoundError):  # there was no room for it any more
                    links[path].hardlink_to(path)
                    return

        step("fetch files")
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as threads:
            list(threads.map(hold, links))
        return [links.get(path, path) for path in paths]

    def _fetch(self, path: Path) -> None:
        self._cache.add(path, lambda unfinished: self._download(path, unfinished))

    def keep(self, finished: Path, path: Path) -> None:
        step("put a file")
        self._put(finished, path)
        self._cache.add(path, finished.replace)

    def delete(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            self.tried("DELETE", path, lambda: obstore.delete(self._client, self._key(path)))
        path.unlink(missing_ok=True)

    def list(self, folder: Path) -> Iterator[Found]:
        for found in self._objects(folder):
            yield Found(self.layout.root / found["path"], found["last_modified"].timestamp())

    def start_grace(self, paths: Iterable[Path], now: float) -> None:
        # An object cannot be made younger without being written anew.
        named = "\n".join(self._key(path) for path in paths)
        if named:
            step("note what is superseded")
            note = f"{NOTES}/{now:.0f}-{uuid.uuid4().hex}.txt"
            self.tried("PUT", self.layout.root / note, lambda: obstore.put(self._client, note, named.encode()))

    def grace_started(self, path: Path) -> float:
        if self._graces is None:
            found = [found["path"] for found in self._objects(self.layout.root / NOTES)]
            notes = [path for path in found if path.endswith(".txt")]
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="graces") as threads:
                self._graces = dict(zip(notes, threads.map(self._grace, notes), strict=True))
        return max((moment for moment, named in self._graces.values() if self._key(path) in named), default=0.0)

    def _grace(self, note: str) -> tuple[float, frozenset[str]]:
        named: Sequence[str] = ()
        with suppress(FileNotFoundError), self.open(self.layout.root / note) as file:  # another run forgot it just now
            named = file.read().decode().splitlines()
        return float(Path(note).name.partition("-")[0]), frozenset(named)

    def forget_graces(self, before: float) -> None:
        for note, (moment, _) in (self._graces or {}).items():
            if moment < before:
                self.delete(self.layout.root / note)
        self._graces = None

    def _put(self, finished: Path, path: Path) -> None:
        key, size = self._key(path), finished.stat().st_size
        if size <= 2 * BLOCK_BYTES:
            content = finished.read_bytes()
            self.tried("PUT", path, lambda: obstore.put(self._client, key, content, use_multipart=False))
        else:
            send: Any = {"use_multipart": True, "chunk_size": BLOCK_BYTES, "max_concurrency": AT_ONCE}
            self.tried("PUT", path, lambda: obstore.put(self._client, key, finished, **send))

    def _download(self, path: Path, to: Path) -> None:
        """Read all of an object into a file: one request for a small one, two rounds of them for any other."""
        key = self._key(path)
        meta, block = self._block(key, 0, BLOCK_BYTES, None)
        with to.open("wb") as file:
            file.write(block)
            file.truncate(meta["size"])

            def read(start: int) -> None:
                os.pwrite(file.fileno(), self._block(key, start, BLOCK_BYTES, meta["e_tag"])[1], start)

            file.flush()
            if meta["size"] > BLOCK_BYTES:
                with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download") as threads:
                    list(threads.map(read, range(BLOCK_BYTES, meta["size"], BLOCK_BYTES)))

    def _block(self, key: str, start: int, size: int, e_tag: str | None) -> tuple[Mapping[str, Any], memoryview]:
        """So many bytes of an object, fewer at its end. Raises Changed when it is not the one of `e_tag` any more."""
        options: Any = {"range": (start, start + size)} | ({"if_match": e_tag} if e_tag else {})

        def read() -> tuple[Mapping[str, Any], memoryview]:
            answer = obstore.get(self._client, key, options=options)
            return answer.meta, memoryview(answer.bytes())

        try:
            meta, block = self.tried("GET", self.layout.root / key, read)
        except PreconditionError:
            raise Changed(errno.ESTALE, os.strerror(errno.ESTALE), self.name_of(self.layout.root / key)) from None
        if e_tag and meta["e_tag"] != e_tag:
            raise Changed(errno.ESTALE, os.strerror(errno.ESTALE), self.name_of(self.layout.root / key))
        return meta, block

    def _objects(self, folder: Path, behind: str | None = None) -> Iterator[Mapping[str, Any]]:
        """Every object below a folder, those behind the key `behind` where it is given, a page at a time."""
        pages: Iterator[Sequence[Mapping[str, Any]]] | None = None

        def next_page() -> Sequence[Mapping[str, Any]] | None:
            nonlocal pages
            try:
                pages = pages or iter(obstore.list(self._client, self._key(folder), offset=behind, chunk_size=1000))
                return next(pages, None)
            except Exception:
                pages = None  # a page that failed ends the listing; another begins behind the last key that was seen
                raise

        while page := self.tried("LIST", folder, next_page):
            yield from page
            behind = page[-1]["path"]

    # --- documents, which change -------------------------------------------------------------------------------------

    def open(self, path: Path) -> BinaryIO:
        content = self.tried("GET", path, lambda: obstore.get(self._client, self._key(path)).bytes())
        return io.BytesIO(content)

    def write(self, finished: Path, path: Path) -> None:
        step("replace a document")
        self._put(finished, path)

    def signature(self, path: Path) -> Signature | None:
        try:
            found = self.tried("HEAD", path, lambda: obstore.head(self._client, self._key(path)))
        except FileNotFoundError:
            return None
        return _signature(found)

    # --- the published table -----------------------------------------------------------------------------------------

    @property
    def table(self) -> tuple[str, Mapping[str, str]]:
        return self.name_of(self.layout.rollups), {
            **_options(self._bucket),
            "conditional_put": "etag",  # an entry of the log is written once: that is the lock
            "allow_http": str(_is_plain(self._bucket)).lower(),
            "timeout": f"{self._request_seconds:.0f}s",
            "connect_timeout": f"{CONNECT_SECONDS}s",
            "max_retries": "4",
            "retry_timeout": "10s",
        }

    def check_commits(self) -> None:
        step("try whether an object is made once only")
        probe = self.layout.root / NOTES / f"probe-{uuid.uuid4().hex}"

        def make() -> bool:
            try:
                obstore.put(self._client, self._key(probe), b"", mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

        made = [self.tried("PUT", probe, make) for _ in range(2)]
        self.delete(probe)
        if made[1]:
            raise StoreError(
                f"PUT {self.name_of(probe)}: it was made twice, although it was to be made only if it is not there"
                " (If-None-Match); two machines could both publish the same version in a store that does not look"
            )

    def look_at_log(self, version: int | None) -> LogState:
        behind = self._key(self.layout.log_entry(version - 1)) if version else None
        entries: dict[int, Signature] = {}
        for found in self._objects(self.layout.log, behind):
            number, _, kind = found["path"].rpartition("/")[2].partition(".")
            if number.isdigit() and (kind == "json" or kind.startswith("checkpoint")):
                entries.setdefault(int(number), ())
            if number.isdigit() and kind == "json":
                entries[int(number)] = _signature(found)
        place = (str(self._bucket),) if entries else None
        return LogState(place, max(entries, default=None), lambda version: entries.get(version) or None)

    # --- raw logs ----------------------------------------------------------------------------------------------------

    def has_raw(self) -> bool:
        return True  # a bucket has no folders that could be missing

    def list_raw(self) -> Iterator[RawFound]:
        step("list the raw objects")
        for found in self._objects(self.layout.raw):
            file = found["path"].removeprefix("raw/")
            names = file.split("/")
            # What consoles make to show a folder is an empty object, whose name has no ending.
            is_folder = not found["size"] and "." not in names[-1]
            if not is_folder and not any(name.startswith((".", "_")) for name in names):
                yield RawFound(
                    file,
                    size=found["size"],
                    signature=":".join(map(str, _signature(found))),
                    changed_at=found["last_modified"].timestamp(),
                )

    def open_raw(self, file: str, signature: str) -> RawSource:
        return _RawObject(self, file, signature, ahead=BLOCK_BYTES)

    def parquet_source(self, file: str, signature: str) -> RawSource:
        return _RawObject(self, file, signature, ahead=2**16)

    def _key(self, path: Path) -> str:
        key = path.relative_to(self.layout.root).as_posix()
        return "" if key == "." else key


class _RawObject(RawSource):
    """A raw object, read a block at a time. The store itself is told which state of it is meant, with each block."""

    def __init__(self, store: BucketStore, file: str, signature: str, ahead: int) -> None:
        """ahead: bytes that are read at least, where fewer are asked for."""
        size, _, self._e_tag = signature.partition(":")
        self._store = store
        self._path = store.layout.raw / file
        self._size = int(size)
        self._ahead = ahead
        self._position = 0
        self._start, self._block = 0, memoryview(b"")  # the block that was read last
        self._as_listed: bool | None = None  # what the store said with the block it was asked for last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        into = memoryview(buffer).cast("B")
        wanted = min(len(into), self._size - self._position)
        if wanted <= 0:
            return 0
        if not self._start <= self._position < self._start + len(self._block):
            ahead = max(self._ahead, wanted)
            self._start = self._position
            self._block = memoryview(b"")  # before the next: one of them is in memory
            self._as_listed = False
            _, self._block = self._store._block(self._store._key(self._path), self._start, ahead, f'"{self._e_tag}"')
            self._as_listed = True
        begin = self._position - self._start
        part = self._block[begin : begin + wanted]
        into[: len(part)] = part
        self._position += len(part)
        return len(part)

    def is_still(self, signature: str) -> bool:
        if self._as_listed is not None:  # all that was read was read on condition that it is
            return self._as_listed
        now = self._store.signature(self._path)
        return now is not None and ":".join(map(str, now)) == signature


class _Cache:
    """Copies of our files, the ones used last, in a folder that all processes of this machine share."""

    def __init__(self, layout: Layout, most_bytes: int) -> None:
        self._layout = layout
        self._most_bytes = most_bytes
        self._unseen = most_bytes  # bytes that were added since all were counted: at first, who knows
        self._counting = threading.Lock()

    def touch(self, path: Path) -> Path | None:
        """The path, when there is a copy; which then is the one used last."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def add(self, path: Path, make: Callable[[Path], object]) -> Path:
        """Make a copy, whole or not at all; delete others where it takes more room than there is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{uuid.uuid4().hex}")
        try:
            make(unfinished)
            size = unfinished.stat().st_size
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        with self._counting:
            self._unseen += size
            if self._unseen > self._most_bytes // 16:  # other processes add to it, too
                self._make_room()
                self._unseen = 0
        return path

    def _make_room(self) -> None:
        copies = sorted(self._all())
        size = sum(copy.size for copy in copies)
        for copy in copies[:-1]:
            if size <= self._most_bytes * 15 // 16:
                break
            is_unfinished = copy.path.name.startswith(".")
            if not is_unfinished or copies[-1].used - copy.used > ABANDONED_SECONDS:
                copy.path.unlink(missing_ok=True)
                size -= copy.size

    def _all(self) -> Iterator[_Copy]:
        for folder, folders, names in os.walk(self._layout.root):
            if Path(folder) == self._layout.root:
                folders[:] = [name for name in folders if name != self._layout.scratch.name]
            for name in names:
                path = Path(folder, name)
                with suppress(FileNotFoundError):
                    found = path.stat()
                    yield _Copy(found.st_mtime, path, found.st_size)


def _make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, that nobody else may look into."""
    if not folder.is_dir():
        _make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


class _Copy(NamedTuple):
    """A copy, in order of when it was used."""

    used: float
    path: Path
    size: int


def _is_plain(bucket: Bucket) -> bool:
    return bucket.endpoint is not None and bucket.endpoint.startswith("http://")


def _options(bucket: Bucket) -> dict[str, str]:
    """How both clients are told of a bucket; what is not set, they look for where AWS's own tools do."""
    options = {
        "aws_endpoint": bucket.endpoint,
        "aws_region": bucket.region,
        "aws_access_key_id": bucket.access_key_id,
        "aws_secret_access_key": bucket.secret_access_key,
        "aws_session_token": bucket.session_token,
    }
    return {name: value for name, value in options.items() if value}


def _signature(found: Mapping[str, Any]) -> Signature:
    """Size and ETag; the time of a store that gives none."""
    return (found["size"], (found["e_tag"] or str(found["last_modified"])).strip('"'))


# --- what the store answers ------------------------------------------------------------------------------------------


class _Answer(NamedTuple):
    """What a store says that does not do what it is asked. status: None when it said nothing, or not all of it."""

    status: int | None
    code: str
    text: str

    @property
    def may_pass(self) -> bool:
        """Whether another try may go well."""
        # 409: two conditional PUTs of one key at the same moment, of which none may have won.
        return self.status is None or self.status >= 500 or self.status in (408, 409, 429) or self.code in _PASSING


_PASSING = {"SlowDown", "RequestTimeout", "Throttling"}
_WRONG_KEY = {"SignatureDoesNotMatch", "InvalidAccessKeyId", "InvalidToken", "ExpiredToken"}
_OTHER_REGION = {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint"}


def _answer(error: Exception) -> _Answer | None:
    """What the store answered, from what either client says of it; None for what is no store's answer."""
    text = " ".join(re.sub(r"\s*↳", ":", re.sub(r"\x1b\[[0-9;]*m", "", str(error))).split())
    if "redirect without LOCATION" in text:
        return _Answer(301, "PermanentRedirect", "301 PermanentRedirect")
    if status := re.search(r"status code:? ([0-9]{3})( [A-Z][A-Za-z ]*[a-z])?", text):
        code = re.search(r"<Code>(\w+)</Code>", text)
        said = code[1] if code else (status[2] or "").strip()
        return _Answer(int(status[1]), code[1] if code else "", f"{status[1]} {said}".strip())
    if broken := re.search(r"HTTP error: (.{1,80}?)(?=:| Debug source| ?[({]|$)", text):
        return _Answer(None, "", f"no answer: {broken[1]}")
    return None
