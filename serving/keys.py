"""The registry of reading keys: which key may read which organization.

A SQLite file that holds the SHA-256 of each key, never a key. The command writes it while servers read it.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

_KEY = re.compile(r"kt_[A-Za-z0-9_-]{43}")
_ORGANIZATION = re.compile(r"[A-Za-z0-9_-]{1,128}")

# Found by hash alone, so the hash is the primary key; `id` is the name by which people and log lines call a key.
# That a key is an operator's is said, and never follows from an organization that is missing.
_SCHEMA = """
create table reading_key (
    sha256 blob not null primary key,
    id text not null unique,
    organization_id text,
    name text,
    created_at text not null,
    expires_at text,
    revoked_at text,
    operator integer not null check (operator in (0, 1) and operator = (organization_id is null))
) without rowid, strict
"""
_VERSION = 1  # of the schema; the file carries it as its user_version
_COLUMNS = (  # what is read, by version
    "id, organization_id, name, created_at, expires_at, revoked_at, 0",  # version 0 knew no operators
    "id, organization_id, name, created_at, expires_at, revoked_at, operator",
)


class RegistryError(Exception):
    """Something about the registry that an operator can act on. `str()` of it is one line."""


class InvalidOrganization(RegistryError):
    """A name that no organization can have."""

    def __init__(self, organization_id: str) -> None:
        super().__init__(f"{organization_id!r} is no organization id: it must be 1 to 128 letters, digits, '_' or '-'")
        self.organization_id = organization_id


class UnknownKey(RegistryError):
    """No key has this id."""

    def __init__(self, id: str) -> None:
        super().__init__(f"no key has the id {id!r}; 'keytally keys list' shows them")
        self.id = id


class RegistryUnavailable(RegistryError):
    """The registry's file cannot be opened, read or written."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(
            f"the key registry {path} cannot be used: {reason}; it and its folder must be writable, with room for more;"
            " what is no registry must be restored from a backup"
        )
        self.path = path


class NoRegistry(RegistryUnavailable):
    """There is no registry yet, or it is elsewhere."""

    def __init__(self, path: Path) -> None:
        RegistryError.__init__(
            self,
            f"there is no registry of keys at {path}; 'keytally keys create' makes it,"
            " and KEYTALLY_KEYS or KEYTALLY_DATA says where",
        )
        self.path = path


@dataclass(frozen=True)
class ReadingKey:
    """A key as the registry knows it, without the key itself. Instants are UTC.

    organization_id: None for an operator's key, and only for one.
    """

    id: str
    organization_id: str | None
    name: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    operator: bool = False

    @cached_property
    def counted_as(self) -> str:
        """Whose requests those with this key are: its organization's; those of an operator's key are its own."""
        return self.organization_id or f"operator:{self.id}"  # ":" is in no organization's name


@dataclass(frozen=True)
class CreatedKey:
    """A new key. `key` is nowhere else: show it once, then forget it."""

    id: str
    key: str
    organization_id: str | None
    name: str | None
    created_at: datetime
    expires_at: datetime | None
    operator: bool = False


class KeyRegistry:
    """The registry in the file `path`, which `create` and `open` make, readable by its owner only, where there is none.

    Safe to share between threads. Every method raises RegistryUnavailable when the file cannot be used.
    """

    REMEMBERED = 16_384  # keys whose row is kept in memory, some 600 bytes each

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._seen: tuple[int, ...] = ()  # `_look` at the file that `_remembered` was read from
        self._remembered: dict[bytes | str, ReadingKey] = {}  # by hash, and by id

    def create(
        self, organization_id: str, name: str | None = None, expires_at: datetime | None = None, *, now: datetime
    ) -> CreatedKey:
        """A new key that reads `organization_id` until `expires_at`. Raises InvalidOrganization."""
        return self.create_many([organization_id], name, expires_at, now=now)[0]

    def create_many(
        self,
        organization_ids: Iterable[str],
        name: str | None = None,
        expires_at: datetime | None = None,
        *,
        now: datetime,
    ) -> tuple[CreatedKey, ...]:
        """A new key for each of `organization_ids`, in that order; all are stored, or none.

        Raises InvalidOrganization.
        """
        created = []
        for organization_id in organization_ids:
            if not _ORGANIZATION.fullmatch(organization_id):
                raise InvalidOrganization(organization_id)
            created.append(_new_key(organization_id, name, now, expires_at))
        self._store(created)
        return tuple(created)

    def create_operator(
        self, name: str | None = None, expires_at: datetime | None = None, *, now: datetime
    ) -> CreatedKey:
        """A new key that reads every organization until `expires_at`."""
        created = _new_key(None, name, now, expires_at)
        self._store([created])
        return created

    def _store(self, created: Iterable[CreatedKey]) -> None:
        with self._writing() as connection:
            connection.executemany(
                "insert into reading_key values (?, ?, ?, ?, ?, ?, null, ?)",
                (
                    (_hash(key.key), key.id, key.organization_id, key.name, _text(key.created_at),
                     _text(key.expires_at), int(key.operator))
                    for key in created
                ),
            )  # fmt: skip

    def list(self, organization_id: str | None = None) -> tuple[ReadingKey, ...]:
        """The keys of `organization_id`, or all; oldest first, revoked and expired ones too. Raises NoRegistry."""
        self._require()
        with self._told(), closing(self._connect()) as connection:
            rows = connection.execute(
                f"select {_columns(connection)} from reading_key where ?1 is null or organization_id = ?1"  # noqa: S608
                " order by created_at, id",
                (organization_id,),
            ).fetchall()
        return tuple(_reading_key(row) for row in rows)

    def revoke(self, id: str, *, now: datetime) -> bool:
        """Revokes the key, for good; False when it was revoked before. Raises UnknownKey, NoRegistry."""
        self._require()
        with self._writing() as connection:
            revoked = connection.execute(
                "update reading_key set revoked_at = ? where id = ? and revoked_at is null", (_text(now), id)
            ).rowcount
            if not revoked and not connection.execute("select 1 from reading_key where id = ?", (id,)).fetchone():
                raise UnknownKey(id)
        return bool(revoked)

    def open(self) -> None:
        """Makes the file if there is none, and brings an older one up to date.

        For a server at its start: later a missing file is an error, not empty.
        """
        with self._writing():
            pass

    def remembered(self, key: str) -> ReadingKey | None:
        """What `find` last said of `key`, from memory alone; None when it must be asked."""
        return self._remembered.get(_hash(key))

    def find(self, key: str) -> ReadingKey | None:
        """The row of `key`, at the cost of one look-up by primary key; None when it is unknown or malformed.

        Says nothing of expiry and revocation: both are in the row.
        """
        return self._find("sha256", _hash(key)) if _KEY.fullmatch(key) else None

    def remembered_by_id(self, id: str) -> ReadingKey | None:
        """What `find_by_id` last said, from memory alone; None when it must be asked."""
        return self._remembered.get(id)

    def find_by_id(self, id: str) -> ReadingKey | None:
        """The row of the key with this id, as `find`; None when there is none."""
        return self._find("id", id)

    def _find(self, column: str, value: bytes | str) -> ReadingKey | None:
        # Under the lock from reading to remembering: else poll() could forget in between, and a revoked row would stay.
        with self._lock, self._told():
            connection = self._connected()
            row = connection.execute(
                f"select {_columns(connection)} from reading_key where {column} = ?",  # noqa: S608
                (value,),
            ).fetchone()
            if row is None:
                return None
            found = _reading_key(row)
            if len(self._remembered) >= self.REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[value] = found
            return found

    def poll(self) -> None:
        """Forgets what is remembered when the file was written to or replaced. A few microseconds."""
        with self._lock:
            try:
                with self._told():
                    seen = self._look()
                    if self._seen[:-1] != seen[:-1]:
                        self._disconnect()  # another file or other bytes, a restored backup perhaps
                        seen = self._look()
            except RegistryUnavailable:
                self._disconnect()
                raise
            if seen != self._seen:
                self._remembered.clear()
                self._seen = seen

    def close(self) -> None:
        """Lets go of the file. The registry can be used again."""
        with self._lock:
            self._disconnect()

    def _look(self) -> tuple[int, ...]:
        status = self.path.stat()
        version: tuple[int] = self._connected().execute("pragma data_version").fetchone()
        return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, *version)

    def _connected(self) -> sqlite3.Connection:
        if self._reader is None:
            self._reader = self._connect()
        return self._reader

    def _disconnect(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None
        self._seen = ()
        self._remembered.clear()

    def _require(self) -> None:
        with self._told():
            if not self.path.exists():
                raise NoRegistry(self.path)

    def _connect(self) -> sqlite3.Connection:
        # mode=rw: SQLite itself must never make the file, with the rights that happen to be the default.
        # A reader has no need to wait for a writer in WAL mode; the timeout is for recovery after a crash.
        address = f"{self.path.absolute().as_uri()}?mode=rw"
        return sqlite3.connect(address, uri=True, timeout=10, isolation_level=None, check_same_thread=False)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction on a connection of its own, so that the reading one sees the file change. Makes the file."""
        with self._told():
            # The -wal and -shm files get the rights of this one.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with closing(self._connect()) as connection:
                connection.execute("pragma journal_mode = wal")
                connection.execute("pragma synchronous = full")  # a key shown once must not be lost to a power cut
                connection.execute("begin immediate")
                _bring_up_to_date(connection)
                yield connection
                connection.execute("commit")
                # Empties the -wal file, so that the file alone is the registry: a copy of it is a backup, and a backup
                # put in its place is not overlaid with what the old one's -wal still held.
                connection.execute("pragma wal_checkpoint(truncate)").fetchall()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raises RegistryUnavailable for what goes wrong with the file."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise RegistryUnavailable(self.path, reason) from error


def _columns(connection: sqlite3.Connection) -> str:
    """What to read of a key. An older file may have been put in place of a newer one at any time."""
    return _COLUMNS[_version(connection)]


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("pragma user_version").fetchone()[0]
    if version > _VERSION:
        raise sqlite3.DatabaseError(f"it is of version {version}, of a newer keytally; this one knows {_VERSION}")
    return version


def _bring_up_to_date(connection: sqlite3.Connection) -> None:
    """The schema as it is now, in the transaction that is open. Keys keep their rows."""
    if _version(connection) == _VERSION:
        return
    older = connection.execute("select 1 from sqlite_schema where name = 'reading_key'").fetchone()
    if older:
        connection.execute("alter table reading_key rename to older_reading_key")
    connection.execute(_SCHEMA)
    if older:
        connection.execute("insert into reading_key select *, 0 from older_reading_key")
        connection.execute("drop table older_reading_key")
    connection.execute(f"pragma user_version = {_VERSION}")


def _new_key(organization_id: str | None, name: str | None, now: datetime, expires_at: datetime | None) -> CreatedKey:
    id, key = f"key_{secrets.token_hex(8)}", f"kt_{secrets.token_urlsafe(32)}"
    return CreatedKey(id, key, organization_id, name, now, expires_at, operator=organization_id is None)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _text(instant: datetime | None) -> str | None:
    # One width for all, so that text sorts as time does.
    return instant.astimezone(UTC).isoformat(timespec="microseconds") if instant else None


def _reading_key(row: tuple[str, str | None, str | None, str, str | None, str | None, int]) -> ReadingKey:
    id, organization_id, name, created_at, expires_at, revoked_at, operator = row
    return ReadingKey(
        id=id,
        organization_id=organization_id,
        name=name,
        created_at=datetime.fromisoformat(created_at),
        expires_at=datetime.fromisoformat(expires_at) if expires_at else None,
        revoked_at=datetime.fromisoformat(revoked_at) if revoked_at else None,
        operator=bool(operator),
    )
