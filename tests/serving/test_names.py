"""Names of API keys: from a file that anybody may edit, at any time, wrongly."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from pipeline.contract.store import FolderStore
from serving.names import Names, NamesFile
from tests.conftest import Place, request
from tests.serving.conftest import LiveServer, eventually, settings_for
from tests.serving.traffic import publish

HEADER = "organization_id,api_key_id,name\n"


def named(path: Path, content: str | bytes) -> dict[str, str]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    file = NamesFile(FolderStore(path.parent))
    file.refresh()
    return dict(file.names.names)


@pytest.fixture
def path(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    caplog.set_level(logging.INFO, "keytally.names")
    return tmp_path / "key_names.csv"


@pytest.mark.parametrize(
    "content",
    [
        HEADER + "org_a,key_1,Prod\n",
        "\ufeff" + HEADER + "org_a,key_1,Prod",
        HEADER.replace("\n", "\r\n") + 'org_a,"key_1","Prod"\r\n\r\n',
        "name,note,organization_id,api_key_id\nProd,x,org_a,key_1\n",
    ],
)
def test_names_are_read_as_csv(path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    assert named(path, content) == {"org_a/key_1": "Prod"}
    assert not caplog.records


def test_a_name_may_be_any_text(path: Path) -> None:
    assert named(path, HEADER + 'org_a,k,"Größe ""M"", 本番"\n') == {"org_a/k": 'Größe "M", 本番'}


@pytest.mark.parametrize(
    ("rows", "line", "why"),
    [
        ("org_a,key_1,Other", 3, "names a key that was named before"),
        ("org_a,key_2", 3, "has not"),
        ("org_a,key_2,a,b", 3, "has not"),
        ("org a,key_2,x", 3, "has not"),
        ("org_a,key 2,x", 3, "has not"),
        ("org_a,key_2,", 3, "has not"),
        ("org_a,key_2," + "x" * 257, 3, "has not"),
        ('org_a,key_2,"two\nlines"', 4, "has not"),
        (b"org_a,key_2,\xff", 3, "has not"),
        ("org_a,key_2,\0", 3, "has not"),
        ('org_a,key_2,"x"y', 3, "has not"),
        ("org_a,key_2," + "x" * 200_000, 3, "has not"),
    ],
)
def test_a_bad_row_is_left_out_and_told_once(
    path: Path, rows: str | bytes, line: int, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    row = rows if isinstance(rows, bytes) else rows.encode()
    content = HEADER.encode() + b"org_a,key_1,Prod\n" + row + b"\norg_a,key_3,Last\norg_a,key_1,Again\n"
    assert named(path, content) == {"org_a/key_1": "Prod", "org_a/key_3": "Last"}
    (record,) = caplog.records
    assert record.getMessage().startswith(f"key_names.csv: 2 rows left out; line {line} {why}")


@pytest.mark.parametrize(
    "content",
    ["", "org_a,key_1,Prod\n", "organization_id;api_key_id;name\n", HEADER.strip() + ",name\n", b"PK\x03\x04\xff\x00"],
)
def test_a_file_without_its_header_names_nothing(
    path: Path, content: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert named(path, content) == {}
    (record,) = caplog.records
    assert "its first line must name the columns organization_id, api_key_id, name" in record.getMessage()


def test_there_is_an_end_to_what_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(NamesFile, "MOST_NAMES", 2)
    assert len(named(path, HEADER + "".join(f"org_a,k{n},x\n" for n in range(5)))) == 2
    assert "3 rows left out; line 4 is beyond 2 names" in caplog.text
    monkeypatch.setattr(NamesFile, "MOST_BYTES", 10)
    assert named(path, HEADER + "org_a,k,x\n") == {}
    assert "it is larger than 10 bytes" in caplog.text


def test_a_file_is_read_again_only_when_it_is_another(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text("rubbish")
    file = NamesFile(FolderStore(path.parent))
    for _ in range(3):
        file.refresh()
    assert len(caplog.records) == 1
    path.write_text(HEADER + "org_a,k,x\n")
    file.refresh()
    before = file.names
    file.refresh()
    assert file.names is before
    path.unlink()
    file.refresh()
    assert file.names.of("org_a", "k") is None
    path.mkdir()
    file.refresh()
    file.refresh()
    assert len(caplog.records) == 2


def test_a_file_that_could_not_be_opened_for_a_while_is_read_after_that(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(HEADER + "org_a,k,x\n")
    file = NamesFile(FolderStore(path.parent))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as failing:
        failing.setattr(Path, "open", fail)
        for _ in range(3):
            file.refresh()
            assert file.names == Names()
    assert [record.getMessage() for record in caplog.records] == ["key_names.csv names no keys: Too many open files"]
    file.refresh()
    assert file.names.of("org_a", "k") == "x"
    before = file.names
    file.refresh()
    assert file.names is before


def test_a_new_name_is_seen_and_changes_the_tag(place: Place) -> None:
    publish(place, [request(1)])
    paths = {
        "/v1/analytics/api-keys/usage/org_a/key_1?year=2025&month=11": lambda body: body["apiKeyName"],
        "/v1/analytics/org_a/api-keys/top/11/2025": lambda body: body["top_keys"][0]["key_name"],
    }
    with LiveServer(settings_for(place.layout.root, KEYTALLY_REFRESH_SECONDS="0.2")) as server:
        headers = {"X-API-Key": server.create_key("org_a").key}
        tags: dict[str, set[str]] = {path: set() for path in paths}
        for content, name in (
            (None, None),
            (HEADER + "org_a,key_1,Prod\n", "Prod"),
            (HEADER + "org_a,key_1,Test\n", "Test"),
            (HEADER + "org_b,key_1,Theirs\n", None),
            ("rubbish", None),
        ):
            if content is not None:
                (place.layout.root / "key_names.csv").write_text(content)
            for path, name_of in paths.items():
                eventually(lambda: name_of(server.client.get(path, headers=headers).json()) == name)  # noqa: B023
                tags[path].add(server.client.get(path, headers=headers).headers["etag"])
        assert {len(found) for found in tags.values()} == {3}
