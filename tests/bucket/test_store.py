"""A bucket, asked over a bad line: what is tried again, what is said, and what lies on this machine."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
import pytest

import pipeline.contract.bucket
from pipeline.contract.bucket import ATTEMPTS, BLOCK_BYTES, BucketStore
from pipeline.contract.settings import Bucket
from pipeline.contract.store import Changed, Store, StoreError
from pipeline.ledger import read_ledger
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


def read(store: Store, file: str, signature: str) -> bytes:
    with store.open_raw(file, signature) as opened:
        return opened.read()


def use_everything(store: Store, place: BucketPlace) -> None:
    """Every kind of request once, and what it gives."""
    path = store.layout.daily / "day=2025-11-10" / "a-1.parquet"
    store.keep(finished(place, b"x" * 100_000), path)
    assert store.fetch(path, anew=True).read_bytes() == b"x" * 100_000
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
    assert {method for method, _ in tried} == {"GET", "PUT", "HEAD", "DELETE"} or "POST" in {m for m, _ in tried}


def test_what_goes_on_going_wrong_is_one_error_that_says_what_was_tried(place: BucketPlace, line: s3.Line) -> None:
    line.fate = lambda _: s3.error(503, "SlowDown")
    store = store_over(line, place)
    with pytest.raises(StoreError) as failed:
        store.signature(store.layout.last_run)
    assert re.sub(r"in \d s", "in N s", str(failed.value)) == (
        f"HEAD s3://{s3.BUCKET}/{place.prefix}/last_run.json: 503 Service Unavailable"
        f" ({ATTEMPTS} tries in N s); running the command again is safe"
    )
    assert len(line.calls) == ATTEMPTS
    with pytest.raises(StoreError, match=r"GET s3://.*/last_run.json: 503 SlowDown \(8 tries in \d s\)"):
        store.open(store.layout.last_run)


def test_trying_ends_when_patience_does(place: BucketPlace, line: s3.Line) -> None:
    line.fate = lambda _: s3.SLOW
    store = store_over(line, place, patience=0.3)
    begun = time.monotonic()
    with pytest.raises(StoreError, match=r"no answer: .* \(. tr"):
        store.open(store.layout.last_run)
    assert time.monotonic() - begun < 2
    assert len(line.calls) < ATTEMPTS


def test_each_pause_is_longer_and_no_two_machines_wait_alike(
    place: BucketPlace, line: s3.Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    pauses: list[float] = []
    monkeypatch.setattr("pipeline.contract.bucket.time.sleep", pauses.append)
    line.fate = lambda _: s3.error(500, "InternalError")
    for _ in range(2):
        with pytest.raises(StoreError):
            store_over(line, place).check()
    first, second = pauses[: ATTEMPTS - 1], pauses[ATTEMPTS - 1 :]
    assert first != second
    for number, pause in enumerate(first):
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


def listing(*keys: str) -> s3.Answer:
    """A page that lists empty objects with these keys."""
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2025-11-10T00:00:00.000Z</LastModified>"
        f"<ETag>&quot;0&quot;</ETag><Size>0</Size></Contents>"
        for key in keys
    )
    return 200, f"<ListBucketResult><Name>{s3.BUCKET}</Name>{contents}</ListBucketResult>".encode()


def test_what_a_console_makes_to_show_a_folder_is_no_log(place: BucketPlace, line: s3.Line) -> None:
    raw = f"{place.prefix}/raw"
    line.fate = lambda _: listing(f"{raw}/", f"{raw}/eu/", f"{raw}/eu/a.jsonl", f"{raw}/.x/b.jsonl", f"{raw}/_c.jsonl")
    assert [found.file for found in store_over(line, place).list_raw()] == ["eu/a.jsonl"]


def test_a_key_that_no_path_can_name_is_told(place: BucketPlace, line: s3.Line) -> None:
    line.fate = lambda _: listing(f"{place.prefix}/raw//a.jsonl")
    with pytest.raises(StoreError, match=r'LIST s3://.*/raw: .*/raw//a.jsonl".*; rename that object, or delete it$'):
        list(store_over(line, place).list_raw())


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


def test_a_large_file_of_ours_is_sent_in_parts_and_fetched_in_two_rounds(place: BucketPlace, line: s3.Line) -> None:
    store = store_over(line, place)
    content = os.urandom(3 * BLOCK_BYTES + 5)
    path = store.layout.daily / "day=2025-11-10" / "a-1.parquet"
    store.keep(finished(place, content), path)
    path.unlink()
    assert store.fetch(path).read_bytes() == content
    assert line.asked("GET", "/daily/") == 4
    line.calls.clear()
    assert store.fetch(path).read_bytes() == content
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
        assert store.fetch(path).read_bytes() == bytes([number]) * 50_000


def test_what_is_held_stays_while_others_take_its_room(place: BucketPlace, line: s3.Line, tmp_path: Path) -> None:
    store = store_over(line, place, size=10**6)
    paths = [store.layout.daily / "day=2025-11-10" / f"{number}-1.parquet" for number in range(40)]
    for number, path in enumerate(paths):
        store.keep(finished(place, bytes([number]) * 50_000), path)
    held = store.fetch_all(paths, place.layout.scratch / "held")
    assert sum(path.exists() for path in paths) <= 20
    assert [path.name for path in held] == [path.name for path in paths]
    assert [path.read_bytes()[:1] for path in held] == [bytes([number]) for number in range(40)]


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
    for found in store.list_raw():
        count, last = count + 1, found
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
