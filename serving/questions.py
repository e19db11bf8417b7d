"""What may be asked of an organization's usage, and how each question is answered from one published version."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from datetime import UTC, date, datetime
from typing import NamedTuple

from serving.amounts import amount_text
from serving.answer import Body
from serving.coverage import cover
from serving.errors import ApiKeyNotFound
from serving.groups import GroupBy, Groups
from serving.key_usage import days_of_key, groups_of, keys_by_cost, was_ever_used
from serving.models import DayCoverage, MonthOfDays, MonthOfKey, Summary, TopKey, TopKeys
from serving.names import Names
from serving.reader import Confirmed, Reader
from serving.usage import MEASURES, Usage, UsageOfMonth, every_day, listed, total_of

CSV = b"text/csv; charset=utf-8; header=present"


class Daily(NamedTuple):
    """The days of a month (its first day), newest first.

    coverage: with the state of every day. fill: with the days without usage. api_key_id: of one key only. group_by:
    each day with its groups. csv: as rows.
    """

    month: date
    coverage: bool = False
    fill: bool = False
    api_key_id: str | None = None
    group_by: GroupBy | None = None
    csv: bool = False

    @property
    def is_wide(self) -> bool:
        """Whether very many rows may have to be read."""
        return self.group_by is not None

    def basis(self, published: Confirmed, names: Names) -> Hashable | None:  # noqa: ARG002
        """What the answer depends on, beside the question and the organization; None when on the time of asking."""
        file = published.usage_of(self.month)
        if file is None:
            return None
        basis = published.coverage_of(self.month) if self.coverage else None
        if self.api_key_id is None and self.group_by is None:
            return file.path, file.published_at, basis
        return published.files_of(self.month), basis

    def answer(self, organization_id: str, published: Confirmed, names: Names, reader: Reader, now: datetime) -> Body:  # noqa: ARG002
        """The body of the answer. Raises UsageUnavailable, InvalidRequest."""
        files = published.files_of(self.month)
        basis = published.coverage_of(self.month) if self.coverage else None
        usage: Sequence[Usage] = ()
        unpriced = 0
        loaded: Collection[date] = ()
        groups: Groups | None = None
        if files is not None:
            of_month = reader.usage_of(organization_id, files.days)
            usage, unpriced = listed(of_month.days), of_month.unpriced
            if basis:
                loaded = reader.loaded_days(basis.ledger, usage)
            if self.api_key_id is not None:
                usage = days_of_key(reader, organization_id, self.api_key_id, files)
            if self.group_by is not None:
                groups = groups_of(reader, organization_id, files, self.group_by, usage, self.api_key_id)
            changed = [files.days] if self.api_key_id is None and groups is None else [files.days, *files.of_keys()]
            now = max(file.published_at for file in changed)
        coverage = list(cover(basis, loaded, usage)) if basis else None
        days = every_day(self.month, usage) if self.fill else usage
        # Coverage changes without a publication of this month, when a day is over or a run confirms.
        modified = now if files is not None and basis is None else None
        if self.csv:
            return Body(_csv(days, self.group_by, groups, coverage), files is not None, modified, CSV, unpriced)
        grouped = None if self.group_by is None else groups.json_of_days() if groups else {}
        body = MonthOfDays.of(organization_id, self.month, days, now.astimezone(UTC), coverage, grouped)
        return Body(body.json_bytes(), files is not None, modified, unpriced=unpriced)


class Sums(NamedTuple):
    """The sums of a month (its first day)."""

    month: date

    @property
    def is_wide(self) -> bool:
        """Whether very many rows may have to be read."""
        return False

    def basis(self, published: Confirmed, names: Names) -> Hashable | None:  # noqa: ARG002
        """What the answer depends on, beside the question and the organization; None when on the time of asking."""
        file = published.usage_of(self.month)
        return (file.path, file.published_at) if file else None

    def answer(self, organization_id: str, published: Confirmed, names: Names, reader: Reader, now: datetime) -> Body:  # noqa: ARG002
        """The body of the answer. Raises UsageUnavailable."""
        file = published.usage_of(self.month)
        usage = reader.usage_of(organization_id, file) if file else UsageOfMonth()
        generated_at = (file.published_at if file else now).astimezone(UTC)
        body = Summary.of(organization_id, self.month, total_of(usage.days), generated_at)
        modified = file.published_at if file else None
        return Body(body.json_bytes(), file is not None, modified, unpriced=usage.unpriced)


class KeyMonth(NamedTuple):
    """The days of a month (its first day) on which one key was used, newest first."""

    month: date
    api_key_id: str

    @property
    def is_wide(self) -> bool:
        """Whether very many rows may have to be read."""
        return False

    def basis(self, published: Confirmed, names: Names) -> Hashable | None:
        """What the answer depends on, beside the question and the organization."""
        # Of other months too: whether the key was ever used.
        return published.files_of(self.month), published.key_months_digest, names.signature

    def answer(self, organization_id: str, published: Confirmed, names: Names, reader: Reader, now: datetime) -> Body:  # noqa: ARG002
        """The body of the answer. Raises ApiKeyNotFound, UsageUnavailable."""
        files = published.files_of(self.month)
        days = days_of_key(reader, organization_id, self.api_key_id, files) if files else ()
        if not days and not was_ever_used(reader, organization_id, self.api_key_id, published.key_months):
            raise ApiKeyNotFound
        name = names.of(organization_id, self.api_key_id)
        body = MonthOfKey.of(organization_id, self.api_key_id, name, self.month, days)
        unpriced = reader.usage_of(organization_id, files.days).unpriced if files else 0
        # Without a moment of change: a name changes without a publication.
        return Body(body.json_bytes(), lasting=files is not None, unpriced=unpriced)


class Top(NamedTuple):
    """The keys that cost most in a month (its first day), at most `limit`."""

    month: date
    limit: int

    @property
    def is_wide(self) -> bool:
        """Whether very many rows may have to be read."""
        return True

    def basis(self, published: Confirmed, names: Names) -> Hashable | None:
        """What the answer depends on, beside the question and the organization."""
        return published.files_of(self.month), names.signature

    def answer(self, organization_id: str, published: Confirmed, names: Names, reader: Reader, now: datetime) -> Body:  # noqa: ARG002
        """The body of the answer. Raises UsageUnavailable."""
        files = published.files_of(self.month)
        keys: list[TopKey] = []
        number = unpriced = 0
        if files is not None:
            days, unpriced = reader.usage_of(organization_id, files.days)
            found, number = keys_by_cost(reader, organization_id, files, self.limit, total_of(days))
            keys = [
                TopKey(api_key_id=key, name=names.of(organization_id, key), **used._asdict()) for key, used in found
            ]
        body = TopKeys.of(organization_id, self.month, keys, number, self.limit)
        # Without a moment of change: a name changes without a publication.
        return Body(body.json_bytes(), lasting=files is not None, unpriced=unpriced)


def _csv(
    days: Sequence[Usage], group_by: GroupBy | None, groups: Groups | None, coverage: Sequence[DayCoverage] | None
) -> bytes:
    """The days as rows, or with groups their groups; a day without usage has one row in any case. RFC 4180, UTF-8."""
    states = {covered.day: f",{covered.state}" for covered in coverage} if coverage is not None else {}
    columns = ["date", *(["group"] if group_by else []), *MEASURES, *(["state"] if coverage is not None else [])]
    lines = [",".join(columns)]
    rows = groups.csv_of_days() if groups else {}
    for usage in days:
        own = f"{usage.requests},{amount_text(usage.cost)},{amount_text(usage.synapses)},{amount_text(usage.neurons)}"
        behind = states.get(usage.day, "")
        for row in rows.get(usage.day, [f",{own}"]) if group_by else [own]:
            lines.append(f"{usage.day},{row}{behind}")
    lines.append("")
    return "\r\n".join(lines).encode("utf-8")
