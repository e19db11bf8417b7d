"""A bucket, asked over a bad line: what is tried again, what is said, and what lies on this machine."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import obstore
import pytest

import pipeline.contract.bucket
from pipeline.artifacts import verify
from pipeline.contract.bucket import BLOCK_BYTES, BucketStore
from pipeline.contract.settings import Bucket
from pipeline.contract.store import Changed, Store, StoreError
from pipeline.ledger import read_ledger
from pipeline.raw import list_raw
from tests.bucket import s3
from tests.bucket.conftest import BucketPlace
from tests.conftest import request


@pytest.fixture
def line(place: BucketPlace) -> Iterator[s3.Line]:
    with s3.Line(place.server) as line:
        yield line


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.contract.bucket, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(pipeline.contract.bucket, "LONGEST_PAUSE", 0.05)


def store_over(
    line: s3.Line, place: BucketPlace, patience: float = 60, size: int = 10**9, **bucket: Any
) -> BucketStore:
    data = place.settings.data
    assert isinstance(data, Bucket)
    return BucketStore(replace(data, endpoint=line.url, **bucket), place.settings.cache, size, patience)


def finished(place: BucketPlace, content: bytes) -> Path:
    place.layout.scratch.mkdir(parents=True, exist_ok=True)
    path = place.layout.scratch / "finished.parquet"
    path.write_bytes(content)
    return path


def named(content: bytes) -> str:
    """What a file of ours with this content is called."""
    return f"a-{hashlib.sha256(content).hexdigest()[:32]}.parquet"


def read(store: Store, file: str, signature: str) -> bytes:
    with store.open_raw(file, signature) as opened:
        return opened.read()


def fetched(store: Store, path: Path, *, anew: bool = False) -> bytes:
    with store.fetch(path, anew=anew) as file:
        return file.read()


def use_everything(store: Store, place: BucketPlace) -> None:
    """Every kind of request once, and what it gives."""
    path = store.layout.daily / "day=2025-11-10" / "a-1.parquet"
    store.keep(finished(place, b"x" * 100_000), path)
    assert fetched(store, path, anew=True) == b"x" * 100_000
    assert [found.path for found in store.list(store.layout.daily)] == [path]
    store.write(finished(place, b"{}"), store.layout.last_run)
    with store.open(store.layout.last_run) as file:
        assert file.read() == b"{}"
    assert store.signature(store.layout.last_run)
    place.write_raw("a.jsonl", b"y" * 50_000)
    (found,) = store.list_raw()
    assert read(store, found.file, found.signature) == b"y" * 50_000
    store.delete(path)
    assert list(store.list(store.layout.daily)) == []
    assert store.look_at_log(None).place is None


@pytest.mark.parametrize(
    "fate",
    [s3.error(500, "InternalError"), s3.error(503, "SlowDown"), s3.AWAY, s3.CUT, s3.SLOW],
    ids=["500", "503", "connection lost", "answer cut", "no answer"],
)
def test_whatever_goes_wrong_for_a_moment_is_tried_again(place: BucketPlace, line: s3.Line, fate: Any) -> None:
    """The first try of every request fails, also where the request itself arrived."""
    tried: set[tuple[str, str]] = set()

    def fail_first(call: s3.Call) -> Any:
        key = (call.method, call.path if fate != s3.SLOW else "")
        if key in tried:
            return None
        tried.add(key)
        return fate

    line.fate = fail_first
    use_everything(store_over(line, place, patience=1 if fate == s3.SLOW else 60), place)
    assert {method for method, _ in tried} == {"GET", "PUT", "HEAD", "POST"}, "what is deleted, by POST"


def test_what_goes_on_going_wrong_is_one_error_that_says_what_was_tried(place: BucketPlace, line: s3.Line) -> None:
    line.fate = lambda _: s3.error(503, "SlowDown")
    store = store_over(line, place, patience=3)
    with pytest.raises(StoreError) as failed:
        store.signature(store.layout.last_run)
    assert str(failed.value) == (
        f"HEAD s3://{s3.BUCKET}/{place.prefix}/last_run.json: 503 Service Unavailable"
        f" ({len(line.calls)} tries in 3 s); running the command again is safe"
    )
    assert len(line.calls) > 8
    with pytest.raises(StoreError, match=r"GET s3://.*/last_run.json: 503 SlowDown \(\d+ tries in 3 s\)"):
        store.open(store.layout.last_run)


@pytest.mark.parametrize("fate", [s3.SLOW, s3.AWAY, s3.error(503, "SlowDown")], ids=["hangs", "away", "503"])
def test_trying_ends_when_patience_does_and_no_sooner(place: BucketPlace, line: s3.Line, fate: Any) -> None:
    line.fate = lambda _: fate
    store = store_over(line, place, patience=0.6)
    begun = time.monotonic()
    with pytest.raises(StoreError, match=r" tries in \d s\)"):
        store.open(store.layout.last_run)
    assert 0.6 <= time.monotonic() - begun < 4


def test_what_the_store_will_never_do_is_not_asked_for_again(place: BucketPlace, line: s3.Line) -> None:
    line.fate = lambda _: s3.error(501, "NotImplemented")
    with pytest.raises(StoreError, match=r"501 Not Implemented \(1 try\)"):
        store_over(line, place).signature(store_over(line, place).layout.last_run)
    assert len(line.calls) == 1


# --- a slow line -----------------------------------------------------------------------------------------------------


def test_a_slow_line_is_no_dead_one(place: BucketPlace, line: s3.Line) -> None:
    """Each body takes longer than patience lasts; a piece of it comes all the time."""
    line.fate = lambda _: s3.TRICKLE
    content = os.urandom(4 * 2**20)
    store = store_over(line, place, patience=2)
    path = store.layout.daily / "day=2025-11-10" / "a-1.parquet"
    begun = time.monotonic()
    store.keep(finished(place, content), path)
    assert time.monotonic() - begun > 2
    begun = time.monotonic()
    assert fetched(store, path, anew=True) == content
    assert time.monotonic() - begun > 2
    place.write_raw("a.jsonl", content)
    (found,) = store.list_raw()
    assert read(store, found.file, found.signature) == content
    assert [call.method for call in line.calls] == ["PUT", "GET", "GET", "GET"], "and nothing was asked for twice"


def test_what_breaks_off_is_gone_on_with(place: BucketPlace, line: s3.Line) -> None:
    """Every answer is cut in its half: what came is not asked for again, and what goes on coming is not given up."""

    def cut(_: s3.Call) -> str:
        time.sleep(0.4)
        return s3.CUT

    line.fate = cut
    content = os.urandom(BLOCK_BYTES)
    place.write_raw("a.jsonl", content)
    (found,) = place.store.list_raw()
    store = store_over(line, place, patience=2)
    with pytest.raises(StoreError, match="no answer"):
        read(store, found.file, found.signature)
    asked = len(line.calls)
    assert 6 <= asked < 30, "half of what was left came each time, down to a piece"
    line.fate = lambda call: None if call.number > asked + 5 else s3.CUT
    assert read(store_over(line, place, patience=30), found.file, found.signature) == content


def test_a_file_that_is_sent_in_parts_gets_through_a_line_that_breaks_often(place: BucketPlace, line: s3.Line) -> None:
    """Each part is sent again by itself: all of it at once would hardly ever arrive."""
    content = os.urandom(6 * BLOCK_BYTES)
    store = store_over(line, place)
    path = store.layout.daily / "day=2025-11-10" / "a-1.parquet"
    sent: set[str] = set()

    def fail_each_part_once(call: s3.Call) -> Any:
        part = re.search(r"partNumber=\d+", call.path)
        if not part or part[0] in sent:
            return None
        sent.add(part[0])
        return s3.error(500, "InternalError") if len(sent) % 2 else s3.AWAY

    line.fate = fail_each_part_once
    store.keep(finished(place, content), path)
    assert (line.asked("PUT", "partNumber"), line.asked("POST", "uploads")) == (12, 1)
    assert fetched(store, path, anew=True) == content


def test_each_pause_is_longer_and_no_two_machines_wait_alike(
    place: BucketPlace, line: s3.Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    pauses: list[float] = []
    monkeypatch.setattr("pipeline.contract.bucket.time.sleep", pauses.append)
    line.fate = lambda _: s3.error(500, "InternalError")
    times: list[list[float]] = []
    for _ in range(2):
        pauses.clear()
        monkeypatch.setattr("pipeline.contract.bucket.time.monotonic", lambda: sum(pauses))
        with pytest.raises(StoreError, match=r"tries in 60 s"):
            store_over(line, place).check()
        times.append(pauses[:])
    first, second = times
    assert first != second
    for number, pause in enumerate(first[:-1]):  # the last is what was left of the minute
        assert 0.5 * min(0.1 * 2**number, 5) <= pause <= min(0.1 * 2**number, 5)


def sentence(line: s3.Line, place: BucketPlace, **bucket: Any) -> str:
    with pytest.raises(StoreError) as refused:
        store_over(line, place, **bucket).check()
    assert len(line.calls) == 1, "asking again would be asking in vain"
    assert "\n" not in str(refused.value)
    assert s3.SECRET not in str(refused.value)
    return str(refused.value)


def test_a_wrong_secret_is_said_in_a_line(place: BucketPlace, line: s3.Line) -> None:
    said = sentence(line, place, secret_access_key="wrong")
    assert said.endswith("403 SignatureDoesNotMatch; see to AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")


def test_an_unknown_key_is_said_in_a_line(place: BucketPlace, line: s3.Line) -> None:
    assert "403 InvalidAccessKeyId; see to AWS_ACCESS_KEY_ID" in sentence(line, place, access_key_id="AKIANOBODY")


def test_a_bucket_of_somebody_else_is_said_in_a_line(place: BucketPlace, line: s3.Line) -> None:
    assert "s3://not-ours/" in (said := sentence(line, place, name="not-ours"))
    assert said.endswith("403 AccessDenied; the key may not do this, or the bucket is another's: see to its rights")


def test_a_missing_bucket_is_said_in_a_line(place: BucketPlace, line: s3.Line) -> None:
    maker = {"access_key_id": s3.MAKER, "secret_access_key": s3.MAKER_SECRET}
    assert "there is no bucket not-there at" in sentence(line, place, name="not-there", **maker)


@pytest.mark.parametrize(
    "answer",
    [
        s3.error(301, "PermanentRedirect", "<Endpoint>keytally-data.s3.eu-west-1.amazonaws.com</Endpoint>"),
        s3.error(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
    ],
    ids=["301", "400"],
)
def test_a_wrong_region_is_said_in_a_line(place: BucketPlace, line: s3.Line, answer: s3.Answer) -> None:
    """As AWS answers; the server of these tests takes every region."""
    line.fate = lambda _: answer
    assert sentence(line, place).endswith(f"the bucket is not in the region {s3.REGION}: see to AWS_REGION")


def test_what_is_held_is_what_was_written(place: BucketPlace, line: s3.Line) -> None:
    """Statements read it as it is: whoever checked it before may have had a copy that is gone by now."""
    store = store_over(line, place)
    path = store.layout.daily / "day=2025-11-10" / named(b"right")
    store.keep(finished(place, b"right"), path)
    path.unlink()
    obstore.put(place.client, path.relative_to(store.layout.root).as_posix(), b"wrong")
    with pytest.raises(OSError, match="its bytes are not those that were written"):
        store.fetch_all([path], store.layout.scratch / "held")
    assert not path.exists(), "nor is there a copy of it"


def test_to_look_whether_the_bucket_is_there_is_one_request(place: BucketPlace, line: s3.Line) -> None:
    """However much of others lies behind our own."""
    more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>1</NextContinuationToken></ListBucketResult>"
    status, page = listing(*(f"{place.prefix}/~{number:04d}" for number in range(1_000)))
    line.fate = lambda _: (status, page.replace(b"</ListBucketResult>", more))
    store_over(line, place).check()
    assert len(line.calls) == 1


def listing(*keys: str) -> s3.Answer:
    """A page that lists empty objects with these keys."""
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2025-11-10T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;0&quot;</ETag><Size>0</Size></Contents>"
        for key in keys
    )
    return 200, f"<ListBucketResult><Name>{s3.BUCKET}</Name>{contents}</ListBucketResult>".encode()


def test_what_a_console_makes_to_show_a_folder_is_no_log(place: BucketPlace, line: s3.Line) -> None:
    """Also of a folder of Parquet files: it is named as a log is, and the client leaves the slash of its key out."""
    place.write_raw("logs.parquet/part-0.parquet", b"x")
    place.write_raw("eu/a.jsonl", b"")
    raw = f"{place.prefix}/raw"
    keys = [
        f"{raw}/{name}" for name in ("", "eu/", "eu/a.jsonl", "logs.parquet/", "x.jsonl.gz/", ".x/b.jsonl", "_c.jsonl")
    ]
    line.fate = lambda call: listing(*keys) if "list-type" in call.path else None
    assert [found.file for found in store_over(line, place).list_raw()] == ["eu/a.jsonl"]
    listed = list_raw(store_over(line, place))
    assert (listed.held_back, dict(listed.ignored)) == ((), {})


def test_a_key_that_no_path_can_have_is_ignored_and_told(
    place: BucketPlace, line: s3.Line, caplog: pytest.LogCaptureFixture
) -> None:
    """Made up but for the objects themselves: this server makes no such keys."""
    for file in ("!first.jsonl", "a.jsonl", "eu/b.jsonl"):
        place.write_raw(file, request(1))
    nameless = ["/a.jsonl", "../b.jsonl", "eu/./c.jsonl", "eu//d.jsonl"]
    there = sorted(["!first.jsonl", "a.jsonl", "eu/b.jsonl", *nameless])

    def listed(call: s3.Call) -> s3.Answer | None:
        if "list-type" not in call.path:
            return None
        behind = re.search(r"start-after=([^&]+)", call.path)
        start = unquote_plus(behind[1]) if behind else ""
        keys = [key for file in there if (key := f"{place.prefix}/raw/{file}") > start]
        return listing(*keys)

    line.fate = listed
    found = list(store_over(line, place).list_raw())
    assert {each.file for each in found if each.is_file} == {"!first.jsonl", "a.jsonl", "eu/b.jsonl"}
    assert {each.file for each in found if not each.is_file} == set(nameless)
    known = {each.file: each.signature for each in place.store.list_raw()}
    assert {each.file: each.signature for each in found if each.is_file} == known, "as where all have names"
    assert "raw//a.jsonl is ignored: its key has an empty part" in caplog.text
    raw = list_raw(store_over(line, place))
    assert (len(raw.files), set(raw.ignored), raw.held_back) == (3, set(nameless), ())


@pytest.mark.parametrize("fate", [s3.error(500, "InternalError"), s3.AWAY, s3.CUT], ids=["500", "away", "cut"])
def test_what_deltalake_cannot_read_is_the_store_s_error_too(place: BucketPlace, line: s3.Line, fate: Any) -> None:
    place.write_raw("a.jsonl", request(1))
    place.roll_up()
    line.fate = lambda call: fate if call.path.endswith("_last_checkpoint") else None
    store = store_over(line, place, patience=1)
    with pytest.raises(StoreError, match=rf"^opening the table s3://{s3.BUCKET}/.*_delta_log: (500|no answer)"):
        read_ledger(store)


def test_what_is_not_there_is_not_asked_for_again(place: BucketPlace, line: s3.Line) -> None:
    store = store_over(line, place)
    with pytest.raises(FileNotFoundError) as missing:
        store.fetch(store.layout.daily / "day=2025-11-10" / "a-1.parquet")
    assert (missing.value.strerror, len(line.calls)) == ("No such file or directory", 1)
    assert store.signature(store.layout.last_run) is None


def test_a_raw_object_that_changes_while_it_is_read_is_not_mixed(place: BucketPlace, line: s3.Line) -> None:
    store = store_over(line, place)
    place.write_raw("a.jsonl", b"a" * (2 * BLOCK_BYTES))
    (found,) = store.list_raw()
    with store.open_raw(found.file, found.signature) as opened:
        assert opened.is_still(found.signature)
        assert line.asked("HEAD") == 1
        assert opened.read(10) == b"a" * 10
        place.write_raw("a.jsonl", b"b" * (2 * BLOCK_BYTES))
        with pytest.raises(Changed):
            opened.read()
        assert not opened.is_still(found.signature)
        assert line.asked("HEAD") == 1, "each block was asked for on condition that it is the same object"
    with store.open_raw(found.file, found.signature) as opened:
        assert not opened.is_still(found.signature)


def test_a_raw_object_is_read_once_and_in_blocks(place: BucketPlace, line: s3.Line) -> None:
    content = os.urandom(2 * BLOCK_BYTES + 17)
    place.write_raw("a.jsonl", content)
    store = store_over(line, place)
    (found,) = store.list_raw()
    assert read(store, found.file, found.signature) == content
    assert line.asked("GET", "/raw/a.jsonl") == 3


def test_a_large_file_of_ours_is_sent_in_parts_and_fetched_in_blocks(place: BucketPlace, line: s3.Line) -> None:
    store = store_over(line, place)
    content = os.urandom(3 * BLOCK_BYTES + 5)
    path = store.layout.daily / "day=2025-11-10" / "a-1.parquet"
    store.keep(finished(place, content), path)
    path.unlink()
    assert fetched(store, path) == content
    assert line.asked("GET", "/daily/") == 4
    line.calls.clear()
    assert fetched(store, path) == content
    assert line.calls == [], "there is a copy"


def test_copies_take_the_room_they_may_and_what_was_used_last_stays(place: BucketPlace, line: s3.Line) -> None:
    store = store_over(line, place, size=10 * 50_000)
    paths = [store.layout.daily / "day=2025-11-10" / f"{number}-1.parquet" for number in range(20)]
    for number, path in enumerate(paths):
        store.keep(finished(place, bytes([number]) * 50_000), path)
        os.utime(path, (number, number))
        if paths[0].exists():
            os.utime(paths[0])  # used all the time
    left = [number for number, path in enumerate(paths) if path.exists()]
    assert len(left) <= 10
    assert left[0] == 0
    assert left[-1] == 19
    for number, path in enumerate(paths):
        assert fetched(store, path) == bytes([number]) * 50_000


def test_what_is_open_counts_and_stays(place: BucketPlace, line: s3.Line) -> None:
    """To delete its name would make no room."""
    store = store_over(line, place, size=10**6)
    paths = [store.layout.daily / "day=2025-11-10" / f"{number}-1.parquet" for number in range(40)]
    store.keep(finished(place, b"x" * 50_000), paths[0])
    with store.fetch(paths[0]):
        for path in paths[1:]:
            store.keep(finished(place, b"x" * 50_000), path)
        assert paths[0].exists()
        assert sum(path.exists() for path in paths) <= 20
    for path in paths[1:]:
        store.keep(finished(place, b"x" * 50_000), path)
    assert not paths[0].exists()


def test_a_copy_that_another_process_takes_away_is_fetched_again_and_no_damage(
    place: BucketPlace, line: s3.Line
) -> None:
    """All the time, at every moment: files are verified, held and read while somebody empties the cache."""
    store = store_over(line, place)
    paths = []
    for number in range(20):
        content = bytes([number]) * 10_000
        paths.append(store.layout.daily / "day=2025-11-10" / named(content))
        store.keep(finished(place, content), paths[-1])
    stop = threading.Event()

    def take_away() -> None:
        while not stop.is_set():
            for path in paths:
                path.unlink(missing_ok=True)

    thread = threading.Thread(target=take_away)
    thread.start()
    try:
        for turn in range(10):
            for path in paths:
                verify(store, path)
            held = store.fetch_all(paths, store.layout.scratch / f"held{turn}")
            assert [path.read_bytes()[:1] for path in held] == [bytes([number]) for number in range(20)]
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("spoil", ["link", "open to others", "a file"])
def test_a_cache_that_is_not_ours_alone_is_refused(place: BucketPlace, line: s3.Line, spoil: str) -> None:
    cache = place.settings.cache
    if spoil == "open to others":
        store_over(line, place).layout.root.chmod(0o755)
    else:
        cache.rename(cache.with_name("elsewhere"))
        if spoil == "link":
            cache.symlink_to(cache.with_name("elsewhere"))
        else:
            cache.write_text("")
    with pytest.raises(StoreError, match=r"^KEYTALLY_CACHE is '.*', but must be a folder on this machine that is ours"):
        store_over(line, place)


def etag_as(line: s3.Line, tag: str | None) -> None:
    """Have every answer tell this ETag, or none."""
    line.change = lambda headers: {
        **{name: value for name, value in headers.items() if name.lower() != "etag"},
        **({"ETag": tag} if tag else {}),
    }


@pytest.mark.parametrize("tag", ['W/"weak"', None], ids=["weak", "none"])
def test_what_cannot_be_made_a_condition_is_compared(place: BucketPlace, line: s3.Line, tag: str | None) -> None:
    """A weak ETag never matches a condition, by the rules of HTTP; a time is no ETag."""
    store = store_over(line, place)
    place.write_raw("a.jsonl", b"a" * (BLOCK_BYTES + 10))
    etag_as(line, tag)
    signature = ":".join(map(str, store.signature(store.layout.raw / "a.jsonl") or ()))
    assert len(read(store, "a.jsonl", signature)) == BLOCK_BYTES + 10
    etag_as(line, 'W/"another"')
    with pytest.raises(Changed):
        read(store, "a.jsonl", signature)


def test_what_is_held_stays_while_others_take_its_room(place: BucketPlace, line: s3.Line, tmp_path: Path) -> None:
    store = store_over(line, place, size=10**6)
    contents = [bytes([number]) * 50_000 for number in range(40)]
    paths = [store.layout.daily / "day=2025-11-10" / named(content) for content in contents]
    for content, path in zip(contents, paths, strict=True):
        store.keep(finished(place, content), path)
    folder = store.layout.scratch / "held"
    held = store.fetch_all(paths, folder)
    other = store.layout.daily / "day=2025-11-11" / "1-1.parquet"
    store.keep(finished(place, b"x" * 500_000), other)
    assert [path.name for path in held] == [path.name for path in paths]
    assert [path.read_bytes()[:1] for path in held] == [bytes([number]) for number in range(40)]
    assert sum(path.exists() for path in paths) == 40, "to delete a name of what is held would make no room"
    shutil.rmtree(folder)
    store.keep(finished(place, b"x" * 500_000), other)
    assert sum(path.exists() for path in paths) <= 20


def test_a_listing_goes_on_where_a_page_failed(place: BucketPlace, line: s3.Line) -> None:
    for number in range(2_050):
        obstore.put(place.client, f"raw/{number:05d}.jsonl", b"")
    failed: set[str] = set()

    def fail_each_page_once(call: s3.Call) -> Any:
        if "list-type" in call.path and call.path not in failed:
            failed.add(call.path)
            return s3.CUT if len(failed) % 2 else s3.error(500, "InternalError")
        return None

    line.fate = fail_each_page_once
    found = [found.file for found in store_over(line, place).list_raw()]
    assert found == [f"{number:05d}.jsonl" for number in range(2_050)]
    assert len(failed) >= 3


def test_100_000_raw_objects_are_listed_a_page_at_a_time(place: BucketPlace, line: s3.Line) -> None:
    """The server's answers are made up: a hundred pages of a thousand objects, as it writes them."""
    objects, page = 100_000, 1_000

    def listed(call: s3.Call) -> s3.Answer | None:
        token = re.search(r"continuation-token=(\d+)", call.path)
        start = int(token[1]) if token else 0
        contents = "".join(
            f"<Contents><Key>{place.prefix}/raw/{number:06d}.jsonl.gz</Key>"
            f"<LastModified>2025-11-10T00:00:00.000Z</LastModified><ETag>&quot;{number:032x}&quot;</ETag>"
            f"<Size>{number + 1}</Size></Contents>"
            for number in range(start, start + page)
        )
        more = f"<NextContinuationToken>{start + page}</NextContinuationToken>" if start + page < objects else ""
        text = f"<ListBucketResult><Name>{s3.BUCKET}</Name>{contents}{more}</ListBucketResult>"
        return 200, text.encode()

    line.fate = listed
    store = store_over(line, place)
    begun = time.process_time()
    count, last = 0, None
    with peak() as grown:
        for found in store.list_raw():
            count, last = count + 1, found
    with peak() as grown_of_all:
        every = list(store.list_raw())
    assert grown[0] < 20_000 < grown_of_all[0], "kilobytes: of a page; and of all of them"
    assert len(every) == objects
    line.calls = line.calls[objects // page :]
    assert (count, len(line.calls)) == (objects, objects // page)
    assert last is not None
    assert (last.file, last.size, last.signature) == ("099999.jsonl.gz", objects, f"{objects}:{objects - 1:032x}")
    assert last.changed_at == datetime(2025, 11, 10, tzinfo=UTC).timestamp()
    assert time.process_time() - begun < 20  # of both ends of the line


@contextmanager
def peak() -> Iterator[list[int]]:
    """Kilobytes by which the most memory that was resident grew."""
    Path("/proc/self/clear_refs").write_text("5")
    grown: list[int] = []
    before = _peak()
    yield grown
    grown.append(_peak() - before)


def _peak() -> int:
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


def test_a_large_raw_object_takes_the_memory_of_a_few_blocks(place: BucketPlace, server: s3.Server) -> None:
    size = 25 * BLOCK_BYTES
    place.layout.scratch.mkdir(parents=True, exist_ok=True)
    big = place.layout.scratch / "big"
    with big.open("wb") as file:
        file.truncate(size)
    obstore.put(place.client, "raw/big.jsonl", big)
    (found,) = place.store.list_raw()
    with peak() as grown, place.store.open_raw(found.file, found.signature) as opened:
        buffer = bytearray(2**18)
        read = 0
        while count := opened.readinto(buffer):
            read += count
    assert read == size
    assert grown[0] * 1024 < 8 * BLOCK_BYTES
