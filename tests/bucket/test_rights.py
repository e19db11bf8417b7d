"""The rights that docs/operations.md lists are those that keytally uses, and no more."""

from __future__ import annotations

import json
import re
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import obstore

from pipeline.quarantine import Quarantine
from pipeline.reconcile import reconcile
from pipeline.run import start_run
from pipeline.status import status_of
from tests.bucket import s3
from tests.bucket.conftest import BucketPlace
from tests.bucket.test_serving import daily, serving
from tests.conftest import request
from tests.pricing import book_of
from tests.test_formats import COLUMNS, HEADER

DOCS = Path(__file__).parent.parent.parent / "docs/operations.md"
NOVEMBER = date(2025, 11, 1), date(2025, 11, 30)
ONLY_LARGE = {"s3:AbortMultipartUpload"}  # actions that small data does not need
LATER = {"events", "daily", "rejected", "books", "buckets", "superseded"}  # folders in which only a sweep deletes


def allowed() -> set[tuple[str, str]]:
    """Each documented action with the key that it is allowed on, below the prefix."""
    (policy,) = re.findall(
        r"```json\n(\{\"Version\": \"2012-10-17\".*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL
    )
    found = set()
    for statement in json.loads(policy)["Statement"]:
        actions, resources = (as_list(statement[name]) for name in ("Action", "Resource"))
        if actions == ["s3:ListBucket"]:
            assert resources == ["arn:aws:s3:::our-usage"]
            resources = [f"arn:aws:s3:::our-usage/{statement['Condition']['StringLike']['s3:prefix']}"]
        for resource in resources:
            key = resource.removeprefix("arn:aws:s3:::our-usage/keytally/")
            assert key != resource
            found |= {(action, key) for action in actions}
    return found


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def right_of(call: s3.Call, prefix: str) -> tuple[str, str]:
    """The action that a call needs, and on which key below the prefix."""
    path, _, query = call.path.partition("?")
    asked = parse_qs(query, keep_blank_values=True)
    if "list-type" in asked:
        key, action = asked["prefix"][0], "s3:ListBucket"
    else:
        key = unquote(path)
        action = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "DELETE": "s3:DeleteObject"}.get(
            call.method, "s3:PutObject"
        )
        assert "delete" not in asked, "a deletion of many keys has them in its body"
    assert key.startswith(f"{prefix}/"), call
    return action, key.removeprefix(f"{prefix}/")


def test_the_documented_rights_are_those_that_are_used(place: BucketPlace) -> None:
    select = ", ".join(f"{expression} as {name}" for name, expression in COLUMNS.items())
    for key, text in (
        ("formats/shop.sql", f"{HEADER}select {select} from records\n"),
        ("prices.csv", book_of("gpt,2025-01-01,1,1,CHF")),
        ("fx.csv", "day,from,to,rate\n2025-11-10,EUR,CHF,0.9\n"),
        ("key_names.csv", "organization_id,api_key_id,name\norg_a,key_1,Production\n"),
    ):
        obstore.put(place.client, key, text.encode())
    record = {**request(1, cost=...), "model": "gpt", "input_tokens": 1000, "output_tokens": 10}
    place.write_raw("shop/a.jsonl", record, "bad")
    with s3.Line(place.server) as line:
        there = place.elsewhere("behind the line", AWS_ENDPOINT_URL=line.url)
        there.roll_up()
        place.write_raw("b.jsonl", request(2))
        there.roll_up()
        there.backfill("2025-11-01", "2025-11-30")
        with start_run(there.settings, lambda: there.now) as run:
            assert reconcile(run, *NOVEMBER).equal
        anew = place.elsewhere("another", AWS_ENDPOINT_URL=line.url)  # without copies
        status_of(anew.store, place.now, place.settings)
        assert list(Quarantine(anew.store).lines())
        with serving(place, line) as server:
            assert daily(server) == [("2025-11-10", 2)]
    rights = allowed()
    used = {right_of(call, place.prefix) for call in line.calls}
    missing = {
        (action, key)
        for action, key in used
        if not any(action == given and fnmatchcase(key, pattern) for given, pattern in rights)
    }
    assert not missing, "keytally does what the docs give no right to"
    unused = {
        (action, pattern)
        for action, pattern in rights
        if action not in ONLY_LARGE and not any(action == asked and fnmatchcase(key, pattern) for asked, key in used)
    }
    later = {(action, pattern) for action, pattern in unused if pattern.partition("/")[0] in LATER}
    failing = {(action, pattern) for action, pattern in unused if pattern.endswith("_run.json")}
    assert unused - later - failing == {("s3:DeleteObject", "rollups/*")} & unused, (
        "the docs give rights that are not used"
    )
