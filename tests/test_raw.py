"""What lies below raw/, and one pass over a file of it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from pathlib import Path

import pytest

from pipeline import json_file
from pipeline.contract.store import FolderStore
from pipeline.errors import HeldBack
from pipeline.ignored import ignored_logs, readable_name
from pipeline.quarantine import Quarantine
from pipeline.raw import HalfLineError, RawListing, RawPass, hash_raw, list_raw
from pipeline.status import status_of
from tests.conftest import Place, lines, request


def names(listing: RawListing) -> list[str]:
    return [raw_file.file for raw_file in listing.files]


def test_files_are_listed_at_any_depth_in_order_of_path(place: Place) -> None:
    for file in ("b.jsonl", "a/z.jsonl.gz", "a/b/c.parquet", "a.jsonl.zst", "A.jsonl", "ä.jsonl", "with space.jsonl"):
        place.write_raw(file, b"")
    assert names(list_raw(place.store)) == [
        "A.jsonl",
        "a.jsonl.zst",
        "a/b/c.parquet",
        "a/z.jsonl.gz",
        "b.jsonl",
        "with space.jsonl",
        "ä.jsonl",
    ]


def test_names_that_begin_with_a_dot_or_an_underscore_are_not_there(place: Place) -> None:
    for file in (".a.jsonl", "_a.jsonl", ".tmp/a.jsonl", "x/_upload/a.jsonl", "x/.hidden", "_"):
        place.write_raw(file, b"")
    assert list_raw(place.store) == RawListing((), {}, ())


def test_other_endings_are_listed_as_ignored(place: Place) -> None:
    for file in ("a.jsonx", "a.jsonl.bz2", "a.JSONL", "jsonl", "a.csv", "a.jsonl.gz.part", "x/readme.txt"):
        place.write_raw(file, b"")
    os.mkfifo(place.layout.raw / "pipe.jsonl")
    listing = list_raw(place.store)
    assert listing.files == ()
    assert list(listing.ignored) == sorted(
        ["a.jsonx", "a.jsonl.bz2", "a.JSONL", "jsonl", "a.csv", "a.jsonl.gz.part", "x/readme.txt", "pipe.jsonl"]
    )


@pytest.mark.parametrize(
    ("file", "renamed"),
    [
        ("access.jsonl-20261111", "access-20261111.jsonl"),
        ("access.jsonl-20261111.gz", "access-20261111.jsonl.gz"),
        ("access.jsonl.1", "access.1.jsonl"),
        ("access.jsonl.2.gz", "access.2.jsonl.gz"),
        ("access.json-20261111", "access-20261111.json"),
        ("x.log", "x.jsonl"),
        ("x.log.1", "x.1.jsonl"),
        ("x.JSONL", "x.jsonl"),
        ("x.Json.GZ", "x.json.gz"),
        ("x.ndjson~1", "x~1.ndjson"),
        ("x.PARQUET", "x.parquet"),
        ("x.csv", None),  # CSV needs a format
        ("x.jsonl.bz2", None),  # a name alone does not help
        ("litellm/x.csv.gz", None),
        ("\xff.log", "\xff.jsonl"),
    ],
)
def test_an_ignored_file_that_looks_like_a_log_is_a_finding(place: Place, file: str, renamed: str | None) -> None:
    place.write_raw(file, b"x")
    (found,) = ignored_logs(list_raw(place.store))
    assert (found.file, readable_name(file.rpartition("/")[2])) == (file, renamed)
    assert f"name it {renamed}" in found.what_to_do if renamed else "move it out of raw/" in found.what_to_do
    report = place.roll_up()
    assert report.has_findings
    assert report.as_json()["ignored"] == [{"file": file, "reason": found.reason}]
    assert status_of(place.store, place.now, place.settings).as_json()["ignored_logs"] == [file]
    if renamed:
        (place.layout.raw / file).rename(place.layout.raw / renamed)
        assert not place.roll_up().ignored


def test_an_ignored_file_that_is_no_log_is_no_finding(place: Place) -> None:
    names = [
        "README.md",
        "notes.txt",
        "jsonl",
        "a.jsonl.part",
        "a.jsonl.gz.sha256",
        "a.jsonl~",
        "a.jsonlines",
        "a.logo",
    ]
    for file in names:
        place.write_raw(file, b"x")
    assert list(list_raw(place.store).ignored) == sorted(names)
    assert not place.roll_up().has_findings


# --- .json -----------------------------------------------------------------------------------------------------------


def plain_lines(content: bytes, read_size: int = 1) -> list[bytes]:
    """The lines of a `.json` file, read a byte or more at a time."""
    opened = json_file.lines_of(io.BufferedReader(io.BytesIO(content), read_size))  # type: ignore[arg-type]
    return opened.read().split(b"\n")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a":1}\n{"a":2}\n', [b'{"a":1}', b'{"a":2}', b""]),
        (b'\n{"a":1}\n\n{"a":2}', [b"", b'{"a":1}', b"", b'{"a":2}']),
        (b'{\n"a": 1\n}\n', [b'{ "a": 1 } ']),
        (b'\xef\xbb\xbf\n\n{\r\n"a": "}{\\"",\r\n"b": [{}]}', [b'{  "a": "}{\\"",  "b": [{}]}']),
        (b'{\n"a": NaN, "b": "\xff"\n}', [b'{ "a": NaN, "b": "\xff" }']),  # judged by who reads the record
        (b'[\n{"a":1},\n{"a":2}\n]', [b'[ {"a":1}, {"a":2} ]']),
        (b'{"a":\n{"a":1}\n', [b'{"a":', b'{"a":1}', b""]),  # a torn line before a record
        (b'{"a"}}\n{"a":1}', [b'{"a"}}', b'{"a":1}']),
        (b'{\n"a": "x\ny"\n}', [b"{", b'"a": "x', b'y"', b"}"]),  # no string has a line end
        (b"{\n}\n{\n}", [b"{", b"}", b"{", b"}"]),
        (b"1\n{\n}", [b"1", b"{", b"}"]),
        (b"{", [b"{"]),
        (b"", [b""]),
    ],
)
def test_a_json_file_is_one_record_or_one_a_line(content: bytes, expected: list[bytes]) -> None:
    assert plain_lines(content) == expected
    assert plain_lines(content, 2**16) == expected


def test_a_json_file_that_is_larger_than_a_record_may_be_is_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_file, "LONGEST_RECORD", 16)
    assert plain_lines(b'{\n"a": "123456"}') == [b'{ "a": "123456"}']
    assert plain_lines(b'{\n"a": "1234567"}') == [b"{", b'"a": "1234567"}']
    assert plain_lines(b'{"a": "1234567"}\n{"a": 2}') == [b'{"a": "1234567"}', b'{"a": 2}']


def test_bad_records_of_a_json_file_are_quarantined_and_shown(place: Place) -> None:
    place.write_raw("pretty.json", json.dumps(request(1, cost="-1"), indent=2).encode())
    place.write_raw("array.json", json.dumps([request(2), request(3)], indent=2).encode())
    place.write_raw("lines.json", request(4), "", "rubbish", request(5))
    place.roll_up()
    assert place.rejected("pretty.json") == [(1, "negative_amount")]
    assert place.rejected("array.json") == [(1, "not_an_object")]
    assert place.rejected("lines.json") == [(3, "not_json")]
    shown = {each.file: each.text or "" for each in Quarantine(place.store).lines()}
    assert json.loads(shown["pretty.json"]) == request(1, cost="-1")
    assert shown["array.json"].startswith('[   {     "request_id": "req_2"')
    assert shown["lines.json"] == "rubbish"


def test_a_name_that_is_no_text_is_ignored_and_shown(place: Place) -> None:
    Path(os.fsdecode(os.fsencode(place.layout.raw) + b"/\xff.jsonl")).write_bytes(b"")
    listing = list_raw(place.store)
    assert (listing.files, listing.ignored) == ((), {"?.jsonl": "its name is no UTF-8"})


def test_without_a_raw_folder_there_is_nothing(tmp_path: Path) -> None:
    assert list_raw(FolderStore(tmp_path)) == RawListing((), {}, ())


def test_a_link_to_a_folder_is_followed_and_a_loop_is_not(place: Place, tmp_path: Path) -> None:
    place.write_raw("a/b/c.jsonl", b"")
    (place.layout.raw / "a/b/up").symlink_to("../..")
    (place.layout.raw / "a/self").symlink_to(".")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/d.jsonl").write_bytes(b"")
    (place.layout.raw / "linked").symlink_to(tmp_path / "elsewhere")
    (place.layout.raw / "e.jsonl").symlink_to(tmp_path / "elsewhere/d.jsonl")
    (place.layout.raw / "nowhere.jsonl").symlink_to("gone.jsonl")
    listing = list_raw(place.store)
    assert names(listing) == ["a/b/c.jsonl", "e.jsonl", "linked/d.jsonl"]
    assert [(held.file, held.reason) for held in listing.held_back] == [
        ("nowhere.jsonl", "unreadable: a link to nothing")
    ]


def test_a_link_to_itself_is_held_back_and_nothing_else(place: Place) -> None:
    (place.layout.raw / "loop.jsonl").symlink_to("loop.jsonl")
    place.write_raw("a.jsonl", request())
    report = place.roll_up()
    assert [held.file for held in report.held_back] == ["loop.jsonl"]
    assert [entry.file for entry in report.ingested] == ["a.jsonl"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_held_back(place: Place) -> None:
    closed = place.write_raw("closed.jsonl", request())
    place.write_raw("listed/a.jsonl", request(2))
    place.write_raw("shut/a.jsonl", request(3))
    place.write_raw("b.jsonl", request(4))
    closed.chmod(0)
    (place.layout.raw / "listed").chmod(0o400)
    (place.layout.raw / "shut").chmod(0)
    try:
        report = place.roll_up()
    finally:
        (place.layout.raw / "listed").chmod(0o700)
        (place.layout.raw / "shut").chmod(0o700)
    assert sorted(held.file for held in report.held_back) == ["closed.jsonl", "listed/a.jsonl", "shut/"]
    assert place.published("organization_day").requests.sum() == 1


def test_a_pass_hashes_the_bytes_as_they_lie_on_the_disk(place: Place) -> None:
    content = lines(request(1), request(2))
    place.write_raw("a.jsonl", content)
    (raw_file,) = list_raw(place.store).files
    with RawPass(raw_file) as opened:
        assert [batch.num_rows for batch in opened.batches()] == [2]
        assert opened.content() == hashlib.sha256(content).hexdigest() == hash_raw(raw_file)


def test_a_signature_changes_with_content_times_and_inode(place: Place) -> None:
    def signature() -> str:
        return list_raw(place.store).files[0].signature

    path = place.write_raw("a.jsonl", b"12")
    seen = {signature()}
    assert signature() in seen
    path.write_bytes(b"123")
    seen.add(signature())
    os.utime(path, ns=(1, 1))
    seen.add(signature())
    path.with_suffix(".new").write_bytes(b"123")
    os.utime(path.with_suffix(".new"), ns=(1, 1))
    path.with_suffix(".new").replace(path)
    seen.add(signature())
    assert len(seen) == 4


@pytest.mark.parametrize("change", ["rewrite", "rewrite and grow", "replace compressed"])
def test_a_file_that_changes_while_it_is_read_is_held_back(place: Place, change: str) -> None:
    path = place.write_raw("a.jsonl", request(1), request(2))
    if change == "replace compressed":
        path = place.write_raw("a.jsonl.gz", gzip.compress(path.read_bytes()))
    raw_file = list_raw(place.store).files[-1]
    with RawPass(raw_file) as opened:
        batches = iter(opened.batches())
        next(batches)
        if change == "replace compressed":
            other = place.layout.raw / "_other"
            other.write_bytes(path.read_bytes())
            other.replace(path)
        else:
            path.write_bytes(lines(request(4), request(5), *([request(6)] if "grow" in change else [])))
        list(batches)
        with pytest.raises(HeldBack, match="changing"):
            opened.content()


@pytest.mark.parametrize("change", ["append", "append half a line", "rename", "delete", "touch"])
def test_a_log_of_which_what_is_read_stays_the_same_is_not_held_back(place: Place, change: str) -> None:
    content = lines(request(1), request(2))
    path = place.write_raw("a.jsonl", content)
    (raw_file,) = list_raw(place.store).files
    with RawPass(raw_file) as opened:
        batches = iter(opened.batches())
        read = next(batches).num_rows
        if change == "rename":
            path.rename(path.with_name("a.1.jsonl"))
        elif change == "delete":
            path.unlink()
        elif change == "touch":
            path.touch()
        else:
            with path.open("ab") as file:
                file.write(lines(request(3))[: 5 if "half" in change else None])
        assert read + sum(batch.num_rows for batch in batches) == 2
        assert opened.content() == hashlib.sha256(content).hexdigest()
        assert opened.size == len(content)


def test_of_a_log_that_grew_since_it_was_listed_its_whole_lines_are_read(place: Place) -> None:
    content = lines(request(1))
    path = place.write_raw("a.jsonl", content + b'{"half')
    (raw_file,) = list_raw(place.store).files
    with path.open("ab") as file:
        file.write(b" a line")
    assert hash_raw(raw_file) == hashlib.sha256(content).hexdigest()


def test_a_log_that_grows_behind_half_a_line_is_read_again_without_it(place: Place) -> None:
    path = place.write_raw("a.jsonl", lines(request(1)) + b'{"half')
    (raw_file,) = list_raw(place.store).files
    with RawPass(raw_file) as opened:
        list(opened.batches())
        with path.open("ab") as file:
            file.write(b' a line"}')
        with pytest.raises(HalfLineError):
            opened.content()


@pytest.mark.parametrize("content", [b"n", b"notgzip", b"no gzip, and too long to be taken for the head of one"])
def test_what_is_no_gzip_is_called_corrupt_and_not_truncated(place: Place, content: bytes) -> None:
    place.write_raw("a.jsonl.gz", content)
    place.write_raw("b.jsonl.gz", b"\x1f")
    assert [held.reason.partition(":")[0] for held in place.roll_up().held_back] == ["corrupt", "truncated"]
