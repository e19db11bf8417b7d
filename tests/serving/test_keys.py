"""The registry of reading keys, alone and behind a running server."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from serving.keys import InvalidOrganization, KeyRegistry, ReadingKey, RegistryUnavailable, UnknownKey
from tests.serving.conftest import NOW, LiveServer, eventually


@pytest.fixture
def registry(tmp_path: Path) -> KeyRegistry:
    return KeyRegistry(tmp_path / "keys.sqlite")


def test_a_created_key_is_found_and_listed(registry: KeyRegistry) -> None:
    until = NOW + timedelta(days=1)
    created = registry.create("org_abc123", "dashboard", until, now=NOW)
    stored = ReadingKey(created.id, "org_abc123", "dashboard", NOW, until, None)
    assert registry.find(created.key) == stored
    assert registry.list() == registry.list("org_abc123") == (stored,)
    assert registry.list("org_other") == ()
    assert len(created.key) == 46


def test_the_key_itself_is_nowhere_on_disk(registry: KeyRegistry) -> None:
    key = registry.create("org_abc123", now=NOW).key
    registry.find(key)
    files = list(registry.path.parent.iterdir())
    assert len(files) == 3
    assert not any(key[3:].encode() in file.read_bytes() for file in files)


def test_the_files_are_for_their_owner_only(registry: KeyRegistry) -> None:
    before = os.umask(0)
    try:
        registry.find(registry.create("org_abc123", now=NOW).key)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in registry.path.parent.iterdir()} == {0o600}


@pytest.mark.parametrize("organization", ["", "a b", "ä", "a" * 129, "a/b", "org\n", "a.b"])
def test_no_key_is_made_for_what_is_no_organization(registry: KeyRegistry, organization: str) -> None:
    with pytest.raises(InvalidOrganization, match="letters, digits"):
        registry.create_many(["good", organization], now=NOW)
    assert not registry.path.exists()


def test_many_keys_come_in_the_order_of_their_organizations(registry: KeyRegistry) -> None:
    organizations = [f"org_{n}" for n in (3, 1, 2)] * 300
    created = registry.create_many(organizations, now=NOW)
    assert [key.organization_id for key in created] == organizations
    assert len({key.key for key in created}) == len(registry.list()) == 900


def test_a_key_is_revoked_once_and_for_all(registry: KeyRegistry) -> None:
    created = registry.create("org_abc123", now=NOW)
    assert registry.revoke(created.id, now=NOW)
    assert not registry.revoke(created.id, now=NOW + timedelta(days=1))
    assert registry.list()[0].revoked_at == NOW
    with pytest.raises(UnknownKey, match="key_nobody"):
        registry.revoke("key_nobody", now=NOW)


def test_what_is_remembered_is_bounded(registry: KeyRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KeyRegistry, "REMEMBERED", 3)
    keys = registry.create_many(["org_abc123"] * 5, now=NOW)
    for key in keys:
        registry.find(key.key)
    assert [registry.remembered(key.key) is not None for key in keys] == [False, False, True, True, True]


def test_a_missing_or_damaged_registry_is_an_error_in_one_line(registry: KeyRegistry, tmp_path: Path) -> None:
    with pytest.raises(RegistryUnavailable, match="No such file"):
        KeyRegistry(tmp_path / "missing" / "keys.sqlite").create("org_abc123", now=NOW)
    with pytest.raises(RegistryUnavailable, match="unable to open"):
        registry.find("kt_" + "A" * 43)
    registry.path.write_text("no database, whatever it looks like" * 100)
    with pytest.raises(RegistryUnavailable, match="not a database"):
        registry.list()


def test_only_making_a_key_makes_a_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "mistyped"
    monkeypatch.delenv("KEYTALLY_KEYS", raising=False)
    monkeypatch.setenv("KEYTALLY_DATA", str(data))
    for command in (["list"], ["list", "--org", "org_abc123"], ["revoke", "key_nobody"]):
        result = CliRunner().invoke(main, ["keys", *command])
        assert (result.exit_code, result.stdout) == (1, "")
        (sentence,) = result.stderr.splitlines()
        assert f"there is no registry of keys at {data / 'keys.sqlite'}" in sentence
        assert "KEYTALLY_DATA" in sentence
        assert not data.exists()
    assert CliRunner().invoke(main, ["keys", "create", "--org", "org_abc123"]).exit_code == 0
    assert "org_abc123" in CliRunner().invoke(main, ["keys", "list"]).stdout


def test_listing_leaves_the_registry_as_it_was(registry: KeyRegistry) -> None:
    registry.create("org_abc123", now=NOW)
    content = registry.path.read_bytes()
    assert len(registry.list()) == 1
    assert list(registry.path.parent.iterdir()) == [registry.path]
    assert registry.path.read_bytes() == content


def test_reading_goes_on_while_another_process_writes(registry: KeyRegistry) -> None:
    key = registry.create("org_abc123", now=NOW).key
    writer = sqlite3.connect(registry.path, isolation_level=None)
    writer.execute("begin immediate")
    writer.execute("update reading_key set name = 'x'")
    registry.poll()
    begun = datetime.now(UTC)
    found = registry.find(key)
    assert found is not None
    assert found.name is None
    assert datetime.now(UTC) - begun < timedelta(seconds=1)
    writer.execute("commit")
    writer.close()
    registry.poll()
    assert registry.remembered(key) is None


def test_a_key_works_at_once_and_its_revocation_is_seen_within_a_second(live_server: LiveServer) -> None:
    # Made and revoked by another process, as the command does it.
    script = (
        "import sys; from pathlib import Path; from datetime import datetime, UTC;"
        "from serving.keys import KeyRegistry;"
        "registry = KeyRegistry(Path(sys.argv[1])); now = datetime.now(UTC);"
        "created = registry.create('org_abc123', now=now); print(created.key, flush=True); input();"
        "registry.revoke(created.id, now=now); print('revoked', flush=True)"
    )
    command = [sys.executable, "-c", script, str(live_server.settings.keys)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        headers = {"X-API-Key": process.stdout.readline().strip()}

        def status() -> int:
            return live_server.client.get("/v1/analytics/api-keys/daily/org_abc123", headers=headers).status_code

        assert status() == 200
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "revoked\n"
        assert eventually(lambda: status() == 401) < 1


@pytest.mark.parametrize("put", [Path.replace, shutil.copyfile])
def test_a_registry_put_in_place_of_another_is_seen_within_a_second(
    live_server: LiveServer, tmp_path: Path, put: Callable[[Path, Path], object]
) -> None:
    old = live_server.create_key("org_abc123")
    assert live_server.daily(old).status_code == 200
    backup = KeyRegistry(tmp_path / "backup.sqlite")
    new = backup.create("org_abc123", now=NOW)
    put(backup.path, live_server.settings.keys)
    assert eventually(lambda: live_server.daily(old).status_code == 401) < 1
    assert live_server.daily(new).status_code == 200


def test_while_the_registry_is_gone_no_key_is_good(live_server: LiveServer) -> None:
    key = live_server.create_key("org_abc123")
    assert live_server.daily(key).status_code == 200
    live_server.settings.keys.rename(live_server.settings.keys.with_name("aside"))
    assert eventually(lambda: live_server.daily(key).status_code == 503) < 1
    live_server.settings.keys.with_name("aside").rename(live_server.settings.keys)
    assert live_server.daily(key).status_code == 200
