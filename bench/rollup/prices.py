"""What a price book costs a day's roll-up: one day of a million lines, 3 % of them copies, of 10,000
organizations, with costs of their own and without.

    python bench/rollup/prices.py [--lines 1000000] [--rows 2000] [--rounds 5]

Prints CPU seconds of each, the best of some rounds that take turns, and what each costs beside requests that say all.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import duckdb

from pipeline.contract.layout import Layout
from pipeline.contract.settings import Settings
from pipeline.intake import EventFile
from pipeline.prices import prices_of
from pipeline.rollup import DayInputs, use_of
from pipeline.run import Run, start_run

DAY = date(2025, 11, 10)
MODELS = 200
EVENTS = """
copy (
    select
        'req_' || hash(number) as request_id,
        timestamptz '2025-11-10 00:00:00+00'
        + to_microseconds(cast(hash('time', number) % 86400000000 as bigint)) as timestamp,
        'org_' || (hash('organization', number) % 10000) as organization_id,
        'key_' || (hash('key', number) % 5) as api_key_id,
        {cost} as cost,
        {units} as synapses,
        {units} as neurons,
        'model-' || ((hash('organization', number) % 10000 * 7 + hash('model', number) % 4) % $models) as model,
        '/v1/chat/completions' as endpoint,
        200::smallint as status,
        cast(hash('input', number) % 20000 as bigint) as input_tokens,
        cast(hash('output', number) % 2000 as bigint) as output_tokens,
        cast(hash('cached', number) % 500 as bigint) as cached_input_tokens,
        null::varchar as currency
    from (select line % cast(0.97 * $lines as bigint) as number from range($lines) as lines(line))
    order by organization_id, api_key_id, timestamp
) to '{path}' (format parquet, compression zstd, parquet_version v2, row_group_size 122880)
"""
COST, UNITS = "cast(hash('cost', number) % 1000000 as decimal(18, 0)) * 0.000001::decimal(18, 12)", "1::decimal(18, 6)"
KINDS = {
    "all said": (f"cast({COST} as decimal(18, 12))", UNITS),
    "costs by the book": ("null::decimal(18, 12)", UNITS),
    "costs and units by the book": ("null::decimal(18, 12)", "null::decimal(18, 6)"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = Settings.from_environment({"KEYTALLY_DATA": str(root), "KEYTALLY_THREADS": "1"})
        paths = {}
        for kind, (cost, units) in KINDS.items():
            paths[kind] = Layout(root).events_of(DAY) / f"{kind}.parquet"
            paths[kind].parent.mkdir(parents=True, exist_ok=True)
            statement = EVENTS.format(cost=cost, units=units, path=paths[kind])
            duckdb.execute(statement, {"lines": options.lines, "models": MODELS})
        fx = "\n".join(("day,from,to,rate", f"{DAY},USD,CHF,0.88451"))
        with start_run(settings, lambda: datetime.now(UTC)) as run:
            books = {
                "CHF": prices_of("CHF", book(options.rows, "CHF"), None),
                "USD": prices_of("CHF", book(options.rows, "USD"), fx.encode()),
            }
            rounds: dict[str, Callable[[], object]] = {}
            for kind, path in paths.items():
                for currency, prices in books.items():
                    if kind != "all said" or currency == "CHF":
                        name = kind if kind == "all said" else f"{kind}, in {currency}"
                        rounds[name] = rolled(replace(run, prices=prices), path, options.lines)
            best = dict.fromkeys(rounds, float("inf"))
            for _ in range(options.rounds):
                for name, roll_up in rounds.items():
                    begun = time.process_time()
                    roll_up()
                    best[name] = min(best[name], time.process_time() - begun)
    for name, seconds in best.items():
        print(f"{name:36} {seconds:6.2f} s of CPU  {seconds / best['all said'] - 1:+6.1%}")


def book(rows: int, currency: str) -> bytes:
    """A book of so many rows: a history of each model, the last row of which begins on the day."""
    each = rows // MODELS
    lines = ["model,valid_from,input_per_million,output_per_million,cached_input_per_million,currency"]
    for number in range(rows):
        model, version = divmod(number, each)
        begins = f"2025-{version + 1:02}-01" if version < each - 1 else "2025-11-10"
        lines.append(f"model-{model},{begins},{0.1 + number % 97 / 100:.3f},{number % 31 + 0.15:.2f},0.025,{currency}")
    return "\n".join(lines).encode()


def rolled(run: Run, path: Path, lines: int) -> Callable[[], object]:
    return lambda: use_of(run, [DayInputs(DAY, "f" * 32, [EventFile(DAY, lines, path.name)], lines)])


if __name__ == "__main__":
    main()
