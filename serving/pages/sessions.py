"""Sessions: that a browser signed in with a reading key. A signed note of the key's id; never the key."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from serving.keys import RegistryUnavailable

COOKIE = "keytally_session"
SESSION_SECONDS = 8 * 3600  # a working day; whoever stays longer signs in again
_NOTE = re.compile(r"(?P<signed>(?P<id>key_[0-9a-f]{16})\.(?P<end>[0-9]{1,12}))\.(?P<signature>[A-Za-z0-9_-]{43})")


class Sessions:
    """Signs and reads the notes. Whether their key is still good, the registry says, at each request.

    The secret lies beside the registry of keys, in a file of its own: all workers and every restart have the same one,
    and a copy of the registry alone forges nothing. Who deletes the file and starts the server anew ends all sessions.
    """

    def __init__(self, registry: Path) -> None:
        self.path = registry.with_name(f"{registry.name}.sessions")
        self._secret = secrets.token_bytes(32)  # until `open` has read the one that all share: it signs nothing known

    def open(self) -> None:
        """Reads the secret; makes one where there is none. Raises RegistryUnavailable."""
        try:
            if not self.path.exists():
                self._make()
            self._secret = self.path.read_bytes()
        except OSError as error:
            raise RegistryUnavailable(self.path, error.strerror) from error
        if len(self._secret) < 32:
            raise RegistryUnavailable(self.path, "it is no secret of 32 bytes; delete it")

    def issue(self, key_id: str, now: datetime) -> str:
        """A note that the key was shown, good for SESSION_SECONDS from `now`."""
        signed = f"{key_id}.{int(now.timestamp()) + SESSION_SECONDS}"
        return f"{signed}.{self._signature(signed)}"

    def key_id(self, headers: Iterable[tuple[bytes, bytes]], now: datetime) -> str | None:
        """The id of the key that was shown; None where the request has no note of it that is ours and still good."""
        note = _NOTE.fullmatch(_cookie(headers))
        if note is None or not hmac.compare_digest(note["signature"], self._signature(note["signed"])):
            return None
        return note["id"] if now.timestamp() < int(note["end"]) else None

    def _signature(self, signed: str) -> str:
        digest = hmac.digest(self._secret, signed.encode("ascii"), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode("ascii").rstrip("=")

    def _make(self) -> None:
        """Of workers that start together one wins: a link, unlike a rename, replaces nothing."""
        made = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        try:
            self.path.hardlink_to(made)
        except FileExistsError:
            pass
        finally:
            made.unlink()


def cookie_of(note: str, *, secure: bool) -> bytes:
    """`Set-Cookie` for a note, or with an empty one to forget it. secure: never to be sent without TLS."""
    age = SESSION_SECONDS if note else 0
    text = f"{COOKIE}={note}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{'; Secure' if secure else ''}"
    return text.encode("ascii")


def _cookie(headers: Iterable[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                cookie, _, note = pair.strip().partition("=")
                if cookie == COOKIE:
                    return note
    return ""
