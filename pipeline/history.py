"""History: which published days changed after they were over, for whom, from what to what, and why."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.artifacts import verified_for_arrow
from pipeline.contract.layout import month_of
from pipeline.contract.store import Store
from pipeline.contract.tables import ORGANIZATION_DAY, RESTATEMENT
from pipeline.contract.wording import instant_text
from pipeline.ledger import read_ledger

MEASURES = tuple(column.name for column in ORGANIZATION_DAY.columns if column.merge)


@dataclass(frozen=True)
class Restatement:
    """One organization's day that changed after it was over. Amounts are exact.

    What was before is None where it was not known any more.
    """

    day: date
    organization_id: str
    version: int
    run_started: datetime
    cause: str
    files: list[str]
    keys_changed: int | None
    requests_before: int | None
    requests_after: int
    failed_requests_before: int | None
    failed_requests_after: int | None
    cost_before: Decimal | None
    cost_after: Decimal
    synapses_before: Decimal | None
    synapses_after: Decimal
    neurons_before: Decimal | None
    neurons_after: Decimal
    input_tokens_before: Decimal | None
    input_tokens_after: Decimal
    output_tokens_before: Decimal | None
    output_tokens_after: Decimal
    unpriced_before: int | None
    unpriced_after: int | None  # None where it was recorded before there were prices

    @property
    def changed(self) -> list[str] | None:
        """The measures of the organization that differ: none when it only changed between keys or models.

        None when what was before is not known.
        """
        if self.requests_before is None:
            return None
        measures = {name: (getattr(self, f"{name}_before"), getattr(self, f"{name}_after")) for name in MEASURES}
        return [name for name, (before, after) in measures.items() if before is not None and before != after]

    def as_json(self) -> dict[str, Any]:
        """Plain values; amounts as strings, which keep every digit."""
        return {
            name: str(value) if isinstance(value, (Decimal, date)) else value for name, value in vars(self).items()
        } | {"run_started": instant_text(self.run_started)}


def restatements(store: Store, first_day: date, last_day: date, organization_id: str | None) -> list[Restatement]:
    """The restatements of the days from `first_day` to `last_day` (included), of one organization or all.

    In order of version, day and organization.
    """
    found: list[Restatement] = []
    for (rollup, month), file in read_ledger(store).publication.files.items():
        if rollup != RESTATEMENT.name or month is None or not month_of(first_day) <= month <= last_day:
            continue
        with verified_for_arrow(store, store.layout.rollups / file.path) as opened:
            rows = pq.read_table(opened, schema=RESTATEMENT.arrow_schema, partitioning=None)
        if organization_id is not None:
            rows = rows.filter(pc.equal(rows["organization_id"], organization_id))
        found += (Restatement(**row) for row in rows.to_pylist() if first_day <= row["day"] <= last_day)
    return sorted(found, key=lambda row: (row.version, row.day, row.organization_id))
