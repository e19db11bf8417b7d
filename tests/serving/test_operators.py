"""Operator keys: they read every organization; and a registry from before there were any."""

from __future__ import annotations

import json
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from serving.keys import KeyRegistry, ReadingKey, RegistryUnavailable
from tests.serving.conftest import NOW, LiveServer, eventually, settings_for
from tests.serving.publishing import publish_days
from tests.serving.test_daily import COMMITTED, EXAMPLE, EXAMPLE_BODY, NOVEMBER
from tests.serving.test_errors import words_of

OLD_SCHEMA = """
create table if not exists reading_key (
    sha256 blob not null primary key,
    id text not null unique,
    organization_id text not null,
    name text,
    created_at text not null,
    expires_at text,
    revoked_at text
) without rowid, strict
"""


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, str]:
    """A registry as it was made before there were operators, and the key in it."""
    new = KeyRegistry(tmp_path / "made.sqlite")
    created = new.create("org_abc123", "dashboard", NOW + timedelta(days=1), now=NOW)
    new.create("org_other", now=NOW + timedelta(seconds=1))
    new.revoke(new.list("org_other")[0].id, now=NOW)
    path = tmp_path / "keys.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute(OLD_SCHEMA)
        connection.execute("attach ? as made", (str(new.path),))
        columns = "sha256, id, organization_id, name, created_at, expires_at, revoked_at"
        connection.execute(f"insert into reading_key select {columns} from made.reading_key")
    connection.close()
    path.chmod(0o600)
    return path, created.key


def test_an_operator_s_key_reads_every_organization(data: Path) -> None:
    publish_days(data, NOVEMBER, EXAMPLE, published_at=COMMITTED)
    with LiveServer(settings_for(data)) as server:
        operator = server.keys.create_operator("platform", now=NOW)
        assert server.daily(operator, organization="org_abc123").content == EXAMPLE_BODY
        own = server.daily(server.create_key("org_abc124"))
        assert server.daily(operator, organization="org_abc124").content == own.content
        assert server.daily(operator, organization="org_nobody").json()["dailyUsage"] == []
        server.keys.revoke(operator.id, now=NOW)
        assert eventually(lambda: server.daily(operator, organization="org_abc123").status_code == 401) < 1


@pytest.mark.parametrize("organization", ["a%20b", "%00", "%ff", "%C3%A4", "a" * 129, "a.b", "org%0a"])
def test_what_no_organization_can_be_called_is_no_question(live_server: LiveServer, organization: str) -> None:
    words = words_of(live_server.daily(live_server.keys.create_operator(now=NOW), organization=organization))
    assert words[:2] == (400, "INVALID_REQUEST")
    assert words[4] == "org_id must be 1 to 128 letters, digits, '_' or '-'"


def test_an_operator_s_requests_are_counted_as_its_own(data: Path) -> None:
    with LiveServer(settings_for(data, KEYTALLY_RATE_LIMIT="2/hour")) as server:
        first, second = server.keys.create_operator(now=NOW), server.keys.create_operator(now=NOW)
        own = server.create_key("org_abc123")
        namesake = server.create_key(first.id)  # an organization that is called as the key is
        assert [server.daily(first).status_code for _ in range(3)] == [200, 200, 429]
        assert [server.daily(key).status_code for key in (second, own, namesake)] == [200, 200, 200]


def test_an_older_registry_is_read_as_it_is_and_written_to_as_it_is_now(old: tuple[Path, str]) -> None:
    path, key = old
    registry = KeyRegistry(path)
    before = registry.list()
    assert [(stored.organization_id, stored.operator) for stored in before] == [
        ("org_abc123", False),
        ("org_other", False),
    ]
    content = path.read_bytes()
    assert registry.find(key) in before
    assert path.read_bytes() == content
    registry.close()
    operator = registry.create_operator(now=NOW)
    assert registry.find(key) in before
    assert registry.find(operator.key) == ReadingKey(operator.id, None, None, NOW, None, None, operator=True)
    assert {stored.id for stored in registry.list()} == {*(stored.id for stored in before), operator.id}
    assert [stored.id for stored in registry.list("org_abc123")] == [before[0].id]
    assert registry.list("org_other")[0].revoked_at == NOW
    registry.open()  # and once more
    assert len(registry.list()) == 3
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_older_registry_works_under_a_server_and_when_it_is_put_back(old: tuple[Path, str], data: Path) -> None:
    path, key = old
    backup = path.read_bytes()
    with LiveServer(settings_for(data, KEYTALLY_KEYS=str(path))) as server:
        headers = {"X-API-Key": key}
        daily = "/v1/analytics/api-keys/daily/org_abc123"
        assert server.client.get(daily, headers=headers).status_code == 200
        operator = server.keys.create_operator(now=NOW)
        assert server.daily(operator).status_code == 200
        restored = path.with_name("restored")
        restored.write_bytes(backup)
        restored.replace(path)
        assert eventually(lambda: server.daily(operator).status_code == 401) < 1
        assert server.client.get(daily, headers=headers).status_code == 200


def test_a_move_to_the_new_schema_that_fails_leaves_the_old_one(
    old: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, key = old
    with monkeypatch.context() as broken:
        broken.setattr("serving.keys._SCHEMA", "create table reading_key (no_such_shape integer)")
        with pytest.raises(RegistryUnavailable):
            KeyRegistry(path).open()
    assert KeyRegistry(path).find(key) is not None
    KeyRegistry(path).open()
    assert KeyRegistry(path).find(key) is not None


def test_a_registry_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    registry = KeyRegistry(tmp_path / "keys.sqlite")
    key = registry.create("org_abc123", now=NOW).key
    with sqlite3.connect(registry.path) as connection:
        connection.execute("pragma user_version = 9")
    connection.close()
    for use in (registry.open, registry.list, lambda: registry.find(key)):
        with pytest.raises(RegistryUnavailable, match="it is of version 9, of a newer keytally"):
            use()


def test_a_key_without_an_organization_is_an_operator_s_only_if_it_says_so(tmp_path: Path) -> None:
    registry = KeyRegistry(tmp_path / "keys.sqlite")
    registry.create("org_abc123", now=NOW)
    with sqlite3.connect(registry.path) as connection:
        for change in ("organization_id = null", "operator = 1", "operator = 2, organization_id = null"):
            with pytest.raises(sqlite3.IntegrityError):
                connection.execute(f"update reading_key set {change}")
    connection.close()


def test_the_command_makes_and_lists_operator_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KEYTALLY_KEYS", raising=False)
    monkeypatch.setenv("KEYTALLY_DATA", str(tmp_path))

    def keys(*arguments: str, exit_code: int = 0) -> str:
        result = CliRunner().invoke(main, ["keys", *arguments])
        assert result.exit_code == exit_code, result.output
        return result.stdout

    created = json.loads(keys("create", "--operator", "--name", "platform", "--json"))
    assert list(created) == ["id", "key", "organization_id", "name", "created_at", "expires_at", "operator"]
    assert (created["organization_id"], created["operator"], created["name"]) == (None, True, "platform")
    assert json.loads(keys("create", "--org", "org_a", "--json"))["operator"] is False
    assert "for every organization" in keys("create", "--operator")
    listed = json.loads(keys("list", "--json"))
    assert [(key["organization_id"], key["operator"]) for key in listed].count((None, True)) == 2
    assert "every organization" in keys("list")
    assert [key["organization_id"] for key in json.loads(keys("list", "--org", "org_a", "--json"))] == ["org_a"]
    for wrong in (("--operator", "--org", "org_a"), (), ("--operator", "--orgs", __file__)):
        keys("create", *wrong, exit_code=2)
