"""A month of very many organizations, published by the pipeline's own writer, and what must be answered from it."""

from __future__ import annotations

import hashlib
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import duckdb

from pipeline.contract.published import FINDINGS, NOTHING_PUBLISHED
from pipeline.contract.settings import Settings
from pipeline.contract.tables import API_KEY_DAY, ORGANIZATION_DAY
from pipeline.engine import POINT_READ_ROWS
from pipeline.publish import Partition, publish
from pipeline.run import start_run

MONTH = date(2025, 12, 1)
# Of a number `used` below 10^12: numbers as long, and about as random, as they may be.
MEASURES = """(1 + used % 1000)::bigint as requests,
        0::bigint as failed_requests,
        ('0.' || lpad(used::varchar, 12, '0'))::decimal(38, 12) as cost,
        ((used % 10000000) || '.' || lpad((used % 999983)::varchar, 6, '0'))::decimal(38, 6) as synapses,
        ((used % 30000000) || '.' || lpad((used % 999979)::varchar, 6, '0'))::decimal(38, 6) as neurons,
        (used % 100000)::decimal(38, 0) as input_tokens,
        (used % 70000)::decimal(38, 0) as output_tokens"""
# What one key of each organization used on each day.
_DAILY = """
copy (
    with used as (
        select organization, day, (organization * 1000003 + day * 7919) * 48271 % 1000000000000 as used
        from range($first, $behind) as organizations(organization), range(1, $days + 1) as days(day)
    )
    select
        'org_' || left(md5(organization::varchar), 16) as organization_id,
        make_date(2025, 12, day::int) as day,
        'key_1' as api_key_id,
        null::varchar as model,
        {measures}
    from used
) to '{path}' (format parquet)
"""


def name_of(organization: int) -> str:
    """The id of an organization, by its number."""
    return "org_" + hashlib.md5(str(organization).encode(), usedforsecurity=False).hexdigest()[:16]


def publish_month(data: Path, organizations: int, days: int = 31, rows_a_group: int = POINT_READ_ROWS) -> Path:
    """Publishes the organizations' usage of each day of December 2025, up to `days`; the file that holds it."""
    settings = Settings.from_environment({"KEYTALLY_DATA": str(data), "KEYTALLY_MEMORY_LIMIT": "3GB"})
    with start_run(settings, lambda: datetime.now(UTC)) as run:
        daily = []
        for first in range(0, organizations, 500_000):
            daily.append(run.scratch / f"daily-{first}.parquet")
            bounds = {"first": first, "behind": min(first + 500_000, organizations), "days": days}
            duckdb.execute(_DAILY.format(path=daily[-1], measures=MEASURES), bounds)
        run.engine.name_files("daily", daily, API_KEY_DAY)
        path = run.scratch / "organization_day.parquet"
        run.engine.copy(ORGANIZATION_DAY.name, path, rows_a_group)
        publish(run, NOTHING_PUBLISHED, [Partition(ORGANIZATION_DAY, MONTH, path)], {FINDINGS: ""})
        (published,) = (run.layout.rollups).rglob("rollup=organization_day/**/*.parquet")
        return published


def is_right(answer: dict[str, object], organization: int, days: int = 31) -> bool:
    """Whether the plain answer, amounts read as Decimal, is what was published of the organization."""
    expected = []
    for day in range(days, 0, -1):
        used = (organization * 1_000_003 + day * 7_919) * 48_271 % 10**12
        expected.append(
            {
                "date": f"2025-12-{day:02}",
                "requests": 1 + used % 1_000,
                "cost": Decimal(used).scaleb(-12),
                "synapses": Decimal(f"{used % 10_000_000}.{used % 999_983:06}"),
                "neurons": Decimal(f"{used % 30_000_000}.{used % 999_979:06}"),
            }
        )
    return answer["organization_id"] == name_of(organization) and answer["dailyUsage"] == expected
