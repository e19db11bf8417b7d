"""A data root in a bucket, of any store that speaks S3.

Copies of what was read lie in a folder on this machine, under the same names; it may be deleted at any time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import logging
import os
import random
import re
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar, cast

import obstore
from obstore.exceptions import AlreadyExistsError, InvalidPathError, PreconditionError
from obstore.store import S3Store

from pipeline.contract.layout import Layout, checksum_of, stated_checksum
from pipeline.contract.seam import step
from pipeline.contract.settings import Bucket
from pipeline.contract.store import Changed, Found, LogState, RawFound, RawSource, Signature, Store, StoreError

if TYPE_CHECKING:
    from obstore.store import ClientConfig

_T = TypeVar("_T")

log = logging.getLogger(__name__)

BLOCK_BYTES = 8 * 2**20  # of an object that are asked for, or sent, at once
PIECE_BYTES = 2**16  # of a block; whatever brings one of them is no standstill
AT_ONCE = 4  # requests for parts of one object, or for several objects
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds; twice as long each time, less up to a half by chance
CONNECT_SECONDS = 5
IDLE_SECONDS = 30  # without a byte of an answer, at most
SLOWEST_BYTES = 2**17  # a second, of a line on which blocks are sent: of what was sent the client tells nothing before
PAGE_KEYS = 1000  # at most, in one answer to a listing
ABANDONED_SECONDS = 3600  # before the newest copy: an unfinished one of then is nobody's any more
NOTES = "superseded"  # folder of notes of what was superseded when


class BucketStore(Store):
    """A data root in a bucket. Our files are sent whole and fetched whole; raw logs are read a block at a time."""

    look_seconds = 60.0

    def __init__(self, bucket: Bucket, cache: Path, cache_size: int, patience: float) -> None:
        """cache: the folder for copies, of `cache_size` bytes. patience: seconds for which a request that brings
        nothing is repeated.

        Raises StoreError where the folder cannot be ours alone.
        """
        named = hashlib.sha256(f"{bucket.endpoint or ''} {bucket}".encode()).hexdigest()[:16]
        super().__init__(Layout(cache / named))
        _make_private(cache, self.layout.root)
        self._bucket = bucket
        self._patience = patience
        self._idle_seconds = min(patience / 2, IDLE_SECONDS)
        self._send_seconds = self._idle_seconds + AT_ONCE * BLOCK_BYTES / SLOWEST_BYTES
        self._cache = _Cache(self.layout, cache_size)
        self._graces: Sequence[tuple[float, frozenset[str]]] | None = None  # since when, and which keys
        self._kept: set[Path] = set()  # by this run, also for an attempt that was refused
        self._knows_conditions = False
        # Retried here, the cut answers too.
        self._client = self._made_client({"read_timeout": timedelta(seconds=self._idle_seconds)}, retries=0)
        # But for the parts of a large file, of which the client alone can send one again.
        self._sender = self._made_client({}, retries=30)

    def _made_client(self, options: ClientConfig, retries: int) -> S3Store:
        bucket = self._bucket
        return S3Store(
            bucket.name,
            prefix=bucket.prefix or None,
            config=cast("Any", _options(bucket)),
            client_options={
                "allow_http": _is_plain(bucket),
                "timeout": timedelta(seconds=self._send_seconds),  # what is read goes on behind it
                "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
                **options,
            },
            retry_config={"max_retries": retries, "retry_timeout": timedelta(seconds=self._patience)},
        )

    # --- as a whole --------------------------------------------------------------------------------------------------

    def check(self) -> None:
        def first_page() -> None:
            with suppress(InvalidPathError):  # a page came
                next(obstore.list(self._client, offset="~"), None)  # behind everything of ours: mostly an empty one

        self.tried("LIST", self.layout.root, first_page)

    def name_of(self, path: Path) -> str:
        key = self._key(path)
        return f"{self._bucket}/{key}" if key else str(self._bucket)

    def has_folder(self, folder: Path) -> bool:
        # A bucket has no folders. The empty object that a console makes to show one lies beside it, not below.
        return any(True for _ in self._objects(folder))

    def how_to_begin(self) -> str:
        return (
            "if your logs are elsewhere, correct KEYTALLY_DATA; to begin here, put request logs below"
            f" {self.name_of(self.layout.raw)}/"
        )

    def tried(
        self, what: str, path: Path, call: Callable[[], _T], *, came: Callable[[], int] = lambda: 0, longer: float = 0
    ) -> _T:
        """What `call` gives, tried until it does or there is no sense in it. Raises StoreError, or what is not of the
        store.

        came: how much it has brought so far; with each bit of it, patience begins anew. longer: seconds of patience
        beside the usual.
        """
        begun, before, tries = time.monotonic(), came(), 0
        while True:
            try:
                return call()
            except (AlreadyExistsError, PreconditionError, InvalidPathError):
                raise
            except Exception as error:
                answer = _answer(error)
                if answer is None:
                    raise
                if isinstance(error, FileNotFoundError) and answer.code != "NoSuchBucket":
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.name_of(path)) from None
                if answer.status == 416:  # no part of an object that has no bytes can be had
                    raise OSError(errno.EIO, "it is empty", self.name_of(path)) from None
                if came() > before:
                    begun, before, tries = time.monotonic(), came(), 0
                tries += 1
                taken = time.monotonic() - begun
                left = self._patience + longer - taken
                if not answer.may_pass or left <= 0:
                    said = f"{tries} tries in {taken:.0f} s" if tries > 1 else "1 try"
                    raise StoreError(self._sentence(answer, f"{what} {self.name_of(path)}", said)) from None
                pause = min(FIRST_PAUSE * 2 ** min(tries - 1, 10), LONGEST_PAUSE) * random.uniform(0.5, 1)
                time.sleep(min(pause, left))

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

    def fetch(self, path: Path, *, anew: bool = False) -> io.FileIO:
        copy = None if anew else self._cache.open(path)
        if copy is None:
            step("fetch a file")
            copy = self._cache.add(path, lambda unfinished: self._download(path, unfinished))
        return copy

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
            link = links[path]
            if not self._cache.link(path, link):
                self._download(path, link)
                if checksum_of(link) != stated_checksum(path):  # nobody looks at it any more before it is read
                    raise OSError(errno.EIO, "its bytes are not those that were written", self.name_of(path))
                self._cache.add(path, lambda unfinished: unfinished.hardlink_to(link)).close()

        step("fetch files")
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as threads:
            list(threads.map(hold, links))
        return [links.get(path, path) for path in paths]

    def keep(self, finished: Path, path: Path) -> None:
        step("put a file")
        self._put(finished, path)
        self._kept.add(path)
        self._cache.add(path, finished.replace).close()

    def delete(self, path: Path) -> None:
        with suppress(FileNotFoundError):
            self.tried("DELETE", path, lambda: obstore.delete(self._client, self._key(path)))
        path.unlink(missing_ok=True)

    def delete_found(self, found: Found) -> None:
        key = self._key(found.path)

        def delete() -> None:  # looked at before each try: it may be put again between two of them
            # Some stores tell whole seconds here, and parts of them in a listing.
            if obstore.head(self._client, key)["last_modified"].timestamp() <= found.since:
                obstore.delete(self._client, key)

        with suppress(FileNotFoundError):
            self.tried("DELETE", found.path, delete)
        found.path.unlink(missing_ok=True)

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
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="graces") as threads:
                notes = list(self._notes())
                named = threads.map(self._named, (note for note, _ in notes))
                self._graces = [(moment, keys) for (_, moment), keys in zip(notes, named, strict=True)]
        return max((moment for moment, keys in self._graces if self._key(path) in keys), default=0.0)

    def forget_graces(self, before: float) -> None:
        for note, moment in list(self._notes()):
            if moment < before:
                self.delete(note)
        self._graces = None

    def _notes(self) -> Iterator[tuple[Path, float]]:
        """The notes of what was superseded, each with the moment since when."""
        for found in self.list(self.layout.root / NOTES):
            if found.path.suffix == ".txt":
                yield found.path, float(found.path.name.partition("-")[0])

    def _named(self, note: Path) -> frozenset[str]:
        """The keys that a note names. It never changes: a machine that has read it has a copy."""
        try:
            with self.fetch(note) as file:
                return frozenset(file.read().decode().splitlines())
        except FileNotFoundError:  # another run forgot it just now
            return frozenset()

    def _put(self, finished: Path, path: Path) -> None:
        key, size = self._key(path), finished.stat().st_size
        if size > BLOCK_BYTES:
            send: Any = {"use_multipart": True, "chunk_size": BLOCK_BYTES, "max_concurrency": AT_ONCE}
            put = lambda: obstore.put(self._sender, key, finished, **send)  # noqa: E731
        else:
            content = finished.read_bytes()
            client = self._client if size <= PIECE_BYTES else self._sender
            put = lambda: obstore.put(client, key, content, use_multipart=False)  # noqa: E731
        self.tried("PUT", path, put, longer=self._send_seconds if size > PIECE_BYTES else 0)

    def _download(self, path: Path, to: Path) -> None:
        """Read all of an object into a file: one request for a small one, for any other four at a time behind it."""
        key = self._key(path)
        with to.open("wb") as file:

            def read(start: int, tag: str | None) -> Mapping[str, Any]:
                position = start

                def take(piece: Any) -> None:
                    nonlocal position
                    position += os.pwrite(file.fileno(), piece, position)

                return self._read(key, start, start + BLOCK_BYTES, tag, take)

            found = read(0, None)
            if found["size"] > BLOCK_BYTES:
                with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="download") as threads:
                    rest = range(BLOCK_BYTES, found["size"], BLOCK_BYTES)
                    list(threads.map(lambda start: read(start, _tag(found)), rest))

    def _read(
        self, key: str, start: int, end: int, tag: str | None, take: Callable[[Any], object]
    ) -> Mapping[str, Any]:
        """Have `take` take the bytes of an object from `start` to `end` or its own, in order; what is said of it.

        Whatever breaks off is asked for again from where it did. Raises Changed when it is not the object of the tag,
        or no longer the one that it began with.
        """
        path = self.layout.root / key
        position, found = start, None

        def read() -> Mapping[str, Any]:
            nonlocal position, found
            if found and position >= min(end, found["size"]):
                return found
            expected = tag if found is None else _tag(found)
            only = {"if_match": f'"{expected}"'} if expected and not expected.startswith("W/") else {}
            answer = obstore.get(self._client, key, options=cast("Any", {"range": (position, end), **only}))
            if expected and _tag(answer.meta) != expected:
                raise PreconditionError
            found = answer.meta
            for piece in answer.stream(min_chunk_size=PIECE_BYTES):
                take(piece)
                position += len(piece)
            if position < min(end, found["size"]):
                raise OSError(errno.EIO, "not all of it can be had", self.name_of(path))
            return found

        try:
            return self.tried("GET", path, read, came=lambda: position)
        except PreconditionError:
            raise Changed(errno.ESTALE, os.strerror(errno.ESTALE), self.name_of(path)) from None

    def _objects(
        self, folder: Path, behind: str | None = None, on_nameless: Callable[[str], object] = lambda _: None
    ) -> Iterator[Mapping[str, Any]]:
        """Every object below a folder, those behind the key `behind` where it is given, a page at a time.

        on_nameless: is told of each key that no path can have.
        """
        pages: Iterator[Sequence[Mapping[str, Any]]] | None = None
        keys: Sequence[str] | None = None  # all of them, once a page had such a key

        def next_page() -> Sequence[Mapping[str, Any]] | None:
            nonlocal pages
            try:
                pages = pages or obstore.list(self._client, self._key(folder), offset=behind, chunk_size=PAGE_KEYS)
                return next(pages, None)
            except Exception:
                pages = None  # a page that failed ends the listing; another begins behind the last key that was seen
                raise

        while True:
            try:
                page = self.tried("LIST", folder, next_page)
            except InvalidPathError:
                keys = self._keys(folder) if keys is None else keys
                page = self._page_of(keys, behind or "", on_nameless)
            if not page:
                return
            yield from page
            behind = page[-1]["path"]

    def _page_of(
        self, keys: Sequence[str], behind: str, on_nameless: Callable[[str], object]
    ) -> Sequence[Mapping[str, Any]]:
        """What a page would hold that has a key which no path can have, and so cannot be had: up to the key behind it.

        A request for each object: only the listing tells many ETags at once.
        """
        keys = [key for key in keys if key > behind]
        last = max((number for number, key in enumerate(keys[:PAGE_KEYS]) if not _is_path(key)), default=0)
        until = next((number for number in range(last, len(keys)) if _is_path(keys[number])), len(keys))
        for key in keys[:until]:
            if not _is_path(key):
                on_nameless(key)
        named = [key for key in keys[: until + 1] if _is_path(key)]
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="look") as threads:
            return [found for found in threads.map(lambda key: self._look_at(self.layout.root / key), named) if found]

    def _keys(self, folder: Path) -> Sequence[str]:
        """Every key below a folder, in order, whatever it is like: by another client, which knows no ETags."""
        from pyarrow import fs  # noqa: PLC0415  # almost nobody needs it

        bucket = self._bucket
        top = f"{bucket.name}/{bucket.prefix}".rstrip("/") + "/"
        scheme, _, address = (bucket.endpoint or "https://").partition("://")
        try:
            client = fs.S3FileSystem(
                access_key=bucket.access_key_id,
                secret_key=bucket.secret_access_key,
                session_token=bucket.session_token,
                region=bucket.region,
                scheme=scheme,
                endpoint_override=address or None,
                connect_timeout=CONNECT_SECONDS,
                request_timeout=IDLE_SECONDS,
            )
            found = client.get_file_info(fs.FileSelector(top + self._key(folder), recursive=True))
        except OSError as error:
            said = str(error).split("\n", 1)[0]
            raise StoreError(f"LIST {self.name_of(folder)}: {said}; running the command again is safe") from None
        files = [each.path for each in found if each.type == fs.FileType.File]
        return sorted(path.removeprefix(top) for path in files)

    # --- documents, which change -------------------------------------------------------------------------------------

    def open(self, path: Path) -> BinaryIO:
        content = self.tried("GET", path, lambda: obstore.get(self._client, self._key(path)).bytes())
        return io.BytesIO(content)

    def write(self, finished: Path, path: Path) -> None:
        # The note of the run once more, where whoever lists the log sees that it is another.
        for place in (path, *([self._noted] if path == self.layout.last_run else [])):
            step("replace a document")
            self._put(finished, place)

    @property
    def _noted(self) -> Path:
        return self.layout.log / "_last_run"

    def signature(self, path: Path) -> Signature | None:
        found = self._look_at(path)
        return _signature(found) if found else None

    def _look_at(self, path: Path) -> Mapping[str, Any] | None:
        try:
            return self.tried("HEAD", path, lambda: obstore.head(self._client, self._key(path)))
        except FileNotFoundError:
            return None

    # --- the published table -----------------------------------------------------------------------------------------

    @property
    def table(self) -> tuple[str, Mapping[str, str]]:
        return self.name_of(self.layout.rollups), {
            **_options(self._bucket),
            "conditional_put": "etag",  # an entry of the log is written once: that is the lock
            "allow_http": str(_is_plain(self._bucket)).lower(),
            "read_timeout": f"{self._idle_seconds * 1000:.0f}ms",
            "timeout": f"{self._send_seconds:.0f}s",
            "connect_timeout": f"{CONNECT_SECONDS}s",
            "max_retries": "4",
            "retry_timeout": "10s",
        }

    def check_commits(self) -> None:
        if not self._knows_conditions:
            self._check_conditions()
            self._knows_conditions = True
        kept = sorted(self._kept)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="look") as threads:
            for path, found in zip(kept, threads.map(self._look_at, kept), strict=True):
                if found is None:  # the same was superseded long ago, and swept just after it was put again
                    raise StoreError(
                        f"{self.name_of(path)} was deleted meanwhile; nothing was published, and running the command"
                        " again is safe"
                    )

    def _check_conditions(self) -> None:
        """Raises StoreError where the store makes an object anew that is to be made only if it is not there."""
        step("try whether an object is made once only")
        probe = self.layout.root / NOTES / "made-once"

        def make() -> bool:
            try:
                obstore.put(self._client, self._key(probe), b"", mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

        # Once it was made it stays: from then on the first of the two says it.
        if self.tried("PUT", probe, make) and self.tried("PUT", probe, make):
            raise StoreError(
                f"PUT {self.name_of(probe)}: it was made twice, although it was to be made only if it is not there"
                " (If-None-Match); two machines could both publish the same version in a store that does not look"
            )

    def look_at_log(self, version: int | None) -> LogState:
        behind = self._key(self.layout.log_entry(version - 1)) if version else None
        entries: dict[int, Signature] = {}
        note = None
        for found in self._objects(self.layout.log, behind):
            number, _, kind = found["path"].rpartition("/")[2].partition(".")
            if number.isdigit() and (kind == "json" or kind.startswith("checkpoint")):
                entries.setdefault(int(number), ())
            if number.isdigit() and kind == "json":
                entries[int(number)] = _signature(found)
            if number == self._noted.name:
                note = _signature(found)
        place = (str(self._bucket),) if entries else None
        return LogState(place, max(entries, default=None), lambda version: entries.get(version) or None, note)

    # --- raw logs ----------------------------------------------------------------------------------------------------

    def list_raw(self) -> Iterator[RawFound]:
        step("list the raw objects")
        nameless: list[str] = []  # below raw/
        for found in self._objects(self.layout.raw, on_nameless=lambda key: nameless.append(key.removeprefix("raw/"))):
            file = found["path"].removeprefix("raw/")
            names = file.split("/")
            if any(name.startswith((".", "_")) for name in names):
                continue
            if found["size"] or not self._is_folder_marker(names[-1], found["path"]):
                yield RawFound(
                    file,
                    size=found["size"],
                    signature=":".join(map(str, _signature(found))),
                    changed_at=found["last_modified"].timestamp(),
                )
        for file in (file for file in nameless if not file.endswith("/")):
            log.warning("raw/%s is ignored: its key has an empty part, . or .. for one, or a control character", file)
            yield RawFound(file, is_file=False)

    def _is_folder_marker(self, name: str, key: str) -> bool:
        """Return True if an empty object only shows a folder, as consoles and Spark make them: its key ends in a slash.

        The client leaves the slash out, so an object without it is looked for.
        """
        return "." not in name or self._look_at(self.layout.root / key) is None

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
        size, _, self._tag = signature.partition(":")
        self._store = store
        self._path = store.layout.raw / file
        self._size = int(size)
        self._ahead = ahead
        self._position = 0
        self._start, self._block = 0, bytearray()  # the block that was read last
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
            self._block = bytearray()  # before the next: one of them is in memory
            self._as_listed = False
            key = self._store._key(self._path)
            self._store._read(key, self._start, self._start + ahead, self._tag, self._block.extend)
            self._as_listed = True
        begin = self._position - self._start
        part = memoryview(self._block)[begin : begin + wanted]
        into[: len(part)] = part
        self._position += len(part)
        return len(part)

    def is_still(self, signature: str) -> bool:
        if self._as_listed is not None:  # all that was read was read on condition that it is
            return self._as_listed
        now = self._store.signature(self._path)
        return now is not None and ":".join(map(str, now)) == signature


class _Cache:
    """Copies of our files, the ones used last, in a folder that all processes of this machine share.

    A copy that is open, or linked, is locked or has two names: to delete it would make no room, so it stays.
    """

    def __init__(self, layout: Layout, most_bytes: int) -> None:
        self._layout = layout
        self._most_bytes = most_bytes
        self._unseen = most_bytes  # bytes that were added since all were counted: at first, who knows
        self._counting = threading.Lock()

    def open(self, path: Path) -> io.FileIO | None:
        """The copy, when there is one; which then is the one used last."""
        try:
            copy = io.FileIO(path)
        except FileNotFoundError:
            return None
        fcntl.flock(copy, fcntl.LOCK_SH)
        os.utime(copy.fileno())
        return copy

    def link(self, path: Path, link: Path) -> bool:
        """Give the copy another name, when there is one; which then is the one used last."""
        try:
            link.hardlink_to(path)
        except FileNotFoundError:
            return False
        os.utime(link)
        return True

    def add(self, path: Path, make: Callable[[Path], object]) -> io.FileIO:
        """Make a copy, whole or not at all, and open it; delete others where it takes more room than there is."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{uuid.uuid4().hex}")
        try:
            make(unfinished)
            copy = io.FileIO(unfinished)
            fcntl.flock(copy, fcntl.LOCK_SH)
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        with self._counting:
            self._unseen += os.fstat(copy.fileno()).st_size
            if self._unseen > self._most_bytes // 16:  # other processes add to it, too
                self._make_room()
                self._unseen = 0
        return copy

    def _make_room(self) -> None:
        copies = sorted(self._all())
        size = sum(copy.size for copy in copies)
        for copy in copies[:-1]:
            if size <= self._most_bytes * 15 // 16:
                break
            is_unfinished = copy.path.name.startswith(".")
            if is_unfinished and copies[-1].used - copy.used <= ABANDONED_SECONDS:
                continue
            with suppress(FileNotFoundError, BlockingIOError), io.FileIO(copy.path) as opened:
                fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(opened.fileno()).st_nlink == 1:
                    copy.path.unlink()
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


def _make_private(cache: Path, root: Path) -> None:
    """Make the folder `root` in `cache`, into which nobody else may look.

    Raises StoreError where it cannot be made, or either is one that another user could put something into.
    """
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        for folder, others in ((cache, 0o022), (root, 0o077)):
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & others:
                raise PermissionError(errno.EPERM, f"{folder} is a link, another user's, or open to others")
    except OSError as error:
        raise StoreError(
            f"KEYTALLY_CACHE is '{cache}', but must be a folder on this machine that is ours alone: {error.strerror}"
        ) from None


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


def _tag(found: Mapping[str, Any]) -> str:
    """The ETag, without its quotes. W/ in front: a weak one, or the time of a store that gives none. Neither may be
    made a condition."""
    return str(found["e_tag"]).replace('"', "") if found["e_tag"] else f"W/{int(found['last_modified'].timestamp())}"


def _signature(found: Mapping[str, Any]) -> Signature:
    return (found["size"], _tag(found))


def _is_path(key: str) -> bool:
    """Whether the client takes it for a path."""
    return not re.search(r"(^|/)\.{0,2}(/|$)|[\x00-\x1f\x7f]", key)


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
        return self.status is None or self.status in _PASSING_STATUSES or self.code in _PASSING


_PASSING_STATUSES = {408, 409, 425, 429, 500, 502, 503, 504}  # 501: it will never do that
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
