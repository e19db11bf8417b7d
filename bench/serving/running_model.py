"""What the server must answer while publications go on: sums of its own, from the requests as they were logged.

It shares nothing with what it checks. A version is acceptable from when its run began until the next one's run
has ended and the servers have had the time to see it.
"""

from __future__ import annotations

import calendar
import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Any, NamedTuple

REFRESH_SECONDS = 1.0  # KEYTALLY_REFRESH_SECONDS as it is by default: how long a server may take to see a publication
USED_DAYS = [day for day in range(1, 31) if day != 7]  # of a published month: all others are not loaded
Json = Any


class Sums(NamedTuple):
    """What was used."""

    requests: int = 0
    cost: Decimal = Decimal(0)
    synapses: Decimal = Decimal(0)
    neurons: Decimal = Decimal(0)

    def plus(self, other: Sums) -> Sums:
        """Both together."""
        return Sums(
            self.requests + other.requests,
            self.cost + other.cost,
            self.synapses + other.synapses,
            self.neurons + other.neurons,
        )

    def fields(self, prefix: str = "") -> dict[str, Json]:
        """Each by its name."""
        return {prefix + name: value for name, value in self._asdict().items()}

    @property
    def average_cost(self) -> Decimal:
        """Of a request."""
        return (self.cost / (self.requests or 1)).quantize(Decimal("1e-12"), ROUND_HALF_EVEN)


class Entry(NamedTuple):
    """What a version added to an organization's usage; less than nothing where it corrected what was there."""

    version: int
    organization: str
    month: str
    day: int
    key: str
    model: str | None
    sums: Sums


@dataclass
class Version:
    """When its run began and ended (seconds of the wall clock), and the months it changed."""

    begun: float
    months: frozenset[str]
    ended: float = math.inf


@dataclass
class RunningModel:
    """Everything that was logged, by the version that publishes it. Versions count from 1."""

    versions: list[Version] = field(default_factory=list)
    entries: dict[str, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    names: dict[tuple[str, str], str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cells: Callable[[str, int, str], dict[tuple[int, str, str | None], Sums]] = lru_cache(8192)(self._cells)

    def acceptable(self, asked: float, answered: float) -> list[int]:
        """The versions that an answer may be from, the newest first."""
        numbers = range(len(self.versions), 0, -1)
        superseded = [*(version.ended for version in self.versions[1:]), math.inf]
        return [
            number
            for number in numbers
            if self.versions[number - 1].begun <= answered and asked <= superseded[number - 1] + REFRESH_SECONDS
        ]

    def published_between(self, month: str, version: int) -> tuple[float, float] | None:
        """When the month was last published, as of the version; None when never."""
        for past in reversed(self.versions[:version]):
            if month in past.months:
                return past.begun, past.ended
        return None

    def keys_of(self, organization: str) -> list[str]:
        """The keys that were ever used."""
        return sorted({entry.key for entry in self.entries[organization]})

    def by_day(self, organization: str, version: int, month: str, key: str | None = None) -> dict[int, Sums]:
        """What was used on each day, of all keys or one."""
        found: dict[int, Sums] = defaultdict(Sums)
        for (day, used, _), sums in self.cells(organization, version, month).items():
            if key in (None, used):
                found[day] = found[day].plus(sums)
        return found

    def _cells(self, organization: str, version: int, month: str) -> dict[tuple[int, str, str | None], Sums]:
        found: dict[tuple[int, str, str | None], Sums] = defaultdict(Sums)
        for entry in self.entries[organization]:
            if entry.version <= version and entry.month == month:
                cell = (entry.day, entry.key, entry.model)
                found[cell] = found[cell].plus(entry.sums)
        return found


def total_of(sums: Iterable[Sums]) -> Sums:
    """All together."""
    total = Sums()
    for one in sums:
        total = total.plus(one)
    return total


@dataclass(frozen=True)
class Question:
    """What is asked of an organization: endpoint, month (as 2025-11) and options."""

    kind: str
    month: str
    coverage: bool = False
    fill: bool = False
    key: str | None = None
    group_by: str | None = None
    csv: bool = False
    limit: int = 10

    def target(self, organization: str) -> str:
        """Path and query."""
        year, month = self.month.split("-")
        if self.kind == "top":
            return f"/v1/analytics/{organization}/api-keys/top/{month}/{year}?limit={self.limit}"
        if self.kind == "usage":
            return f"/v1/analytics/api-keys/usage/{organization}/{self.key}?year={year}&month={month}"
        options = {
            "include=coverage": self.coverage,
            "fill=zero": self.fill,
            f"api_key_id={self.key}": self.key,
            f"group_by={self.group_by}": self.group_by,
        }
        chosen = "".join(f"&{option}" for option, given in options.items() if given)
        return f"/v1/analytics/api-keys/{self.kind}/{organization}?year={year}&month={month}{chosen}"

    def is_right(self, body: bytes, model: RunningModel, organization: str, asked: float, answered: float) -> bool:
        """Whether the body is the answer of an acceptable version, and says when it was published."""
        if self.csv:
            rows = [[_number(text) for text in row] for row in csv.reader(io.StringIO(body.decode(), newline=""))]
            return any(rows == self._rows(model, organization, at) for at in model.acceptable(asked, answered))
        answer = json.loads(body, parse_float=Decimal)
        generated = {"daily": answer.get("summary"), "summary": answer}.get(self.kind)
        moment = datetime.fromisoformat(generated.pop("generatedAt")).timestamp() if generated else None
        for version in model.acceptable(asked, answered):
            first, last = model.published_between(self.month, version) or (asked, answered)
            in_time = moment is None or math.floor(first) <= moment <= last
            if in_time and answer == getattr(self, f"_{self.kind}")(model, organization, version):
                return True
        return False

    def _dates(self) -> dict[int, str]:
        year, month = map(int, self.month.split("-"))
        return {day: f"{self.month}-{day:02}" for day in range(calendar.monthrange(year, month)[1], 0, -1)}

    def _listed(self, model: RunningModel, organization: str, version: int) -> dict[int, Sums]:
        used = model.by_day(organization, version, self.month, self.key)
        return {day: used.get(day, Sums()) for day in self._dates() if self.fill or day in used}

    def _groups(
        self, model: RunningModel, organization: str, version: int, wanted: int
    ) -> list[tuple[str | None, Sums]]:
        groups: dict[str | None, Sums] = defaultdict(Sums)
        for (day, key, name), sums in model.cells(organization, version, self.month).items():
            if day == wanted and self.key in (None, key):
                group = key if self.group_by == "api_key" else name
                groups[group] = groups[group].plus(sums)
        return sorted(groups.items(), key=lambda group: (group[0] is not None, group[0] or ""))

    def _states(self, model: RunningModel, version: int) -> dict[int, str]:
        published = model.published_between(self.month, version)
        return {day: "loaded" if published and day in USED_DAYS else "not_loaded" for day in self._dates()}

    def _daily(self, model: RunningModel, organization: str, version: int) -> Json:
        days = self._listed(model, organization, version)
        dates = self._dates()
        listed = [{"date": dates[day], **sums.fields()} for day, sums in days.items()]
        if self.group_by:
            field_name = "api_key_id" if self.group_by == "api_key" else "model"
            for row, day in zip(listed, days, strict=True):
                groups = self._groups(model, organization, version, day)
                row["groups"] = [{field_name: group, **sums.fields()} for group, sums in groups]
        answer: Json = {
            "organization_id": organization,
            "period": {
                "year": int(self.month[:4]),
                "month": int(self.month[5:]),
                "startDate": dates[1],
                "endDate": dates[len(dates)],
                "daysInMonth": len(dates),
                "daysWithApiUsage": sum(sums.requests > 0 for sums in days.values()),
            },
            "dailyUsage": listed,
            "summary": self._summary(model, organization, version),
        }
        if self.coverage:
            states = self._states(model, version)
            answer["coverage"] = [
                {"date": dates[day], "state": states[day], "requests": days.get(day, Sums()).requests} for day in dates
            ]
        return answer

    def _summary(self, model: RunningModel, organization: str, version: int) -> Json:
        total = total_of(model.by_day(organization, version, self.month, self.key).values())
        return {
            "organization_id": organization,
            "month": int(self.month[5:]),
            "year": int(self.month[:4]),
            "totalApiKeyRequests": total.requests,
            "totalApiKeyCost": total.cost,
            "averageCostPerRequest": total.average_cost,
            "total_synapses": total.synapses,
            "totalNeurons": total.neurons,
        }

    def _usage(self, model: RunningModel, organization: str, version: int) -> Json:
        days = self._listed(model, organization, version)
        total = total_of(days.values())
        return {
            "apiKeyId": self.key,
            "apiKeyName": model.names.get((organization, self.key or "")),
            "organizationId": organization,
            "month": int(self.month[5:]),
            "year": int(self.month[:4]),
            "usage": {
                "totalRequests": total.requests,
                "totalCost": total.cost,
                "totalSynapses": total.synapses,
                "totalNeurons": total.neurons,
                "averageCostPerRequest": total.average_cost,
            },
            "dailyUsage": [{"date": self._dates()[day], **sums.fields()} for day, sums in days.items()],
        }

    def _top(self, model: RunningModel, organization: str, version: int) -> Json:
        keys: dict[str, Sums] = defaultdict(Sums)
        for (_, key, _), sums in model.cells(organization, version, self.month).items():
            keys[key] = keys[key].plus(sums)
        ranked = sorted(keys.items(), key=lambda used: (-used[1].cost, -used[1].requests, used[0]))
        dates = self._dates()
        return {
            "organization_id": organization,
            "period": {
                "type": "monthly",
                "month": int(self.month[5:]),
                "year": int(self.month[:4]),
                "start_date": dates[1],
                "end_date": dates[len(dates)],
            },
            "top_keys": [
                {"api_key_id": key, "key_name": model.names.get((organization, key)), **sums.fields("total_")}
                for key, sums in ranked[: self.limit]
            ],
            "total_keys": len(keys),
            "limit": self.limit,
        }

    def _rows(self, model: RunningModel, organization: str, version: int) -> list[list[str | Decimal]]:
        header = ["date", *(["group"] if self.group_by else []), *Sums._fields, *(["state"] if self.coverage else [])]
        rows: list[list[str | Decimal]] = [[*header]]
        states = self._states(model, version)
        for day, sums in self._listed(model, organization, version).items():
            groups = self._groups(model, organization, version, day) if self.group_by else []
            for group, used in groups or [(None, sums)]:
                name = [group or ""] if self.group_by else []
                numbers = [Decimal(used.requests), used.cost, used.synapses, used.neurons]
                rows.append([self._dates()[day], *name, *numbers, *([states[day]] if self.coverage else [])])
        return rows


def _number(text: str) -> str | Decimal:
    return Decimal(text) if text.replace(".", "").isdigit() else text


def now() -> float:
    """Seconds of the wall clock."""
    return datetime.now(UTC).timestamp()
