"""Publish a producer's log with keytally, and compare what is published with what the caller counted."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline.reconcile import reconcile
from pipeline.report import Report
from pipeline.run import start_run
from tests.conftest import Place
from tests.producers.count import TOKENS, Call, totals

SAMPLES = Path(__file__).parent / "samples"
IN_TABLES = ("input_tokens", "output_tokens")  # the published tables hold these; the events hold all of them


def calls_of(expected: Mapping[str, Any]) -> list[Call]:
    """Return the calls of an .expected.json file."""
    return [Call(**{"key": None, "model": None, **call}) for call in expected["calls"]]


def put_in_place(root: Path, log: Path, expected: Mapping[str, Any]) -> Place:
    """Make a data root that holds the log and the caller's prices, at the moment after the last call."""
    place = Place(root, KEYTALLY_CURRENCY=expected["currency"])
    place.now = datetime.fromisoformat(expected["now"])
    place.write_raw(f"{expected['format']}/{log.name}", log.read_bytes())
    (place.layout.root / "prices.csv").write_bytes((SAMPLES / "prices.csv").read_bytes())
    return place


def assert_published_as_counted(root: Path, log: Path, expected: Mapping[str, Any]) -> tuple[Place, Report]:
    """Roll the log up; every number that was published must be the caller's, and `reconcile` must agree."""
    calls = calls_of(expected)
    assert totals(calls) == expected["totals"], "the totals are not the sum of the calls"
    place = put_in_place(root, log, expected)
    report = place.roll_up()
    assert_counted(place, calls)
    with start_run(place.settings, lambda: place.now, publishes=False) as run:
        recount = reconcile(run, date(2020, 1, 1), date(2030, 12, 31))
    assert recount.equal, recount.differences
    unpriced = sum(total["unpriced"] for total in expected["totals"].values())
    assert report.has_findings is bool(unpriced), report.as_json()
    return place, report


def assert_counted(place: Place, calls: Iterable[Call]) -> None:
    """Compare the published tables, the events and the quarantine with the calls."""
    calls = list(calls)
    found: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(int))
    for row in place.published("organization_day").to_dict("records"):
        mine = found[row["organization_id"]]
        for name, column in (("requests", "requests"), ("failed", "failed_requests"), ("unpriced", "unpriced")):
            mine[name] += int(row[column])
        for name in IN_TABLES:
            mine[name] += int(row[name])
        mine["cost"] = Decimal(mine["cost"]) + row["cost"]
    for (organization, _), tokens in _tokens_of_requests(place).items():
        for name in TOKENS:
            if name not in IN_TABLES:
                found[organization][name] += tokens.get(name, 0)
    wanted = {organization: {**total, "cost": Decimal(total["cost"])} for organization, total in totals(calls).items()}
    assert {organization: dict(total) for organization, total in found.items()} == wanted
    assert _by_key_and_model(place, calls) == _wanted_by_key_and_model(calls)

    # Two spans of one call may have two statuses: the published numbers above say how many calls failed.
    statuses = [event["status"] or 200 for file in place.ledger().files for event in place.events(file)]
    wanted_statuses = [call.status for call in calls if call.organization is not None]
    if len(statuses) == len(wanted_statuses):
        assert sorted(statuses) == sorted(wanted_statuses)

    ledger = place.ledger()
    quarantined = [reason for file in ledger.files for _, reason in place.rejected(file)]
    assert quarantined == ["missing_field"] * sum(call.organization is None for call in calls)
    sessions = sum(call.organization is not None and call.key is None for call in calls)
    assert sum(day.session for day in ledger.days.values()) == sessions


def _tokens_of_requests(place: Place) -> dict[tuple[str, str], dict[str, int]]:
    """Return the most tokens that any record of a request has: two spans may tell of one call."""
    requests: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for file in place.ledger().files:
        for event in place.events(file):
            if event["api_key_id"] is not None:
                tokens = requests[event["organization_id"], event["request_id"]]
                for name in TOKENS:
                    tokens[name] = max(tokens.get(name, 0), event.get(name) or 0)
    return requests


def _wanted_by_key_and_model(calls: Iterable[Call]) -> dict[tuple[str, str, str], tuple[int, Decimal]]:
    sums: dict[tuple[str, str, str], tuple[int, Decimal]] = defaultdict(lambda: (0, Decimal(0)))
    for call in calls:
        if call.organization and call.key and call.model:
            requests, cost = sums[call.organization, call.key, call.model]
            sums[call.organization, call.key, call.model] = requests + 1, cost + Decimal(call.cost or 0)
    return dict(sums)


def _by_key_and_model(place: Place, calls: Iterable[Call]) -> dict[tuple[str, str, str], tuple[int, Decimal]]:
    """Return the published requests and costs of the models that callers named."""
    named = {call.model for call in calls}
    sums: dict[tuple[str, str, str], tuple[int, Decimal]] = defaultdict(lambda: (0, Decimal(0)))
    for row in place.published("api_key_day").to_dict("records"):
        if row["model"] in named:
            group = row["organization_id"], row["api_key_id"], row["model"]
            requests, cost = sums[group]
            sums[group] = requests + int(row["requests"]), cost + row["cost"]
    return dict(sums)


def read_expected(path: Path) -> dict[str, Any]:
    """Read what the caller of a sample counted."""
    expected: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return expected
