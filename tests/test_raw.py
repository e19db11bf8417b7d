"""What lies below raw/, and one pass over a file of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pipeline.contract.store import FolderStore
from pipeline.errors import HeldBack
from pipeline.raw import RawListing, RawPass, hash_raw, list_raw
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
    for file in ("a.json", "a.jsonl.bz2", "a.JSONL", "jsonl", "a.csv", "a.jsonl.gz.part", "x/readme.txt"):
        place.write_raw(file, b"")
    os.mkfifo(place.layout.raw / "pipe.jsonl")
    listing = list_raw(place.store)
    assert listing.files == ()
    assert list(listing.ignored) == sorted(
        ["a.json", "a.jsonl.bz2", "a.JSONL", "jsonl", "a.csv", "a.jsonl.gz.part", "x/readme.txt", "pipe.jsonl"]
    )


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


@pytest.mark.parametrize("change", ["append", "rewrite", "replace", "delete"])
def test_a_file_that_changes_while_it_is_read_is_held_back(place: Place, change: str) -> None:
    path = place.write_raw("a.jsonl", request(1), request(2))
    (raw_file,) = list_raw(place.store).files
    with RawPass(raw_file) as opened:
        batches = iter(opened.batches())
        next(batches)
        if change == "append":
            with path.open("ab") as file:
                file.write(lines(request(3)))
        elif change == "rewrite":
            path.write_bytes(lines(request(4), request(5)))
        elif change == "replace":
            other = place.layout.raw / "_other"
            other.write_bytes(path.read_bytes())
            other.replace(path)
        else:
            path.unlink()
        list(batches)
        with pytest.raises(HeldBack, match="changing"):
            opened.content()


def test_a_file_that_grew_since_it_was_listed_waits_for_the_next_run(place: Place) -> None:
    path = place.write_raw("a.jsonl", request(1))
    (raw_file,) = list_raw(place.store).files
    path.write_bytes(path.read_bytes() + lines(request(2)))
    with pytest.raises(HeldBack, match="changing"):
        hash_raw(raw_file)


@pytest.mark.parametrize("content", [b"n", b"notgzip", b"no gzip, and too long to be taken for the head of one"])
def test_what_is_no_gzip_is_called_corrupt_and_not_truncated(place: Place, content: bytes) -> None:
    place.write_raw("a.jsonl.gz", content)
    place.write_raw("b.jsonl.gz", b"\x1f")
    assert [held.reason.partition(":")[0] for held in place.roll_up().held_back] == ["corrupt", "truncated"]
