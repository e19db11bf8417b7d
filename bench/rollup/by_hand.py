"""A month rolled up from keytally's own events, by hand in DuckDB: python by_hand.py FOLDER_OF_EVENTS OUT.parquet

The same dedupe and the same sums as a backfill's; no checksums, no checks, no months, nothing published.
"""

import sys

import duckdb

events, out = sys.argv[1:]

ROLLUP = """
    copy (
        with repeated as (
            select request_hash from request group by request_hash having count(*) > 1
        ),
        counted as (
            select * from request where request_hash not in (select request_hash from repeated)
            union all
            select * from request where request_hash in (select request_hash from repeated)
            qualify row_number() over (
                partition by organization_id, request_id, day
                order by timestamp, api_key_id nulls first, cost, synapses, neurons, model nulls first,
                    endpoint nulls first, status nulls first, input_tokens, output_tokens
            ) = 1
        )
        select
            organization_id,
            day,
            api_key_id,
            model,
            count(*) as requests,
            count(*) filter (where status >= 400) as failed_requests,
            cast(sum(cost) as decimal(38, 12)) as cost,
            cast(sum(synapses) as decimal(38, 6)) as synapses,
            cast(sum(neurons) as decimal(38, 6)) as neurons,
            cast(sum(input_tokens) as decimal(38, 0)) as input_tokens,
            cast(sum(output_tokens) as decimal(38, 0)) as output_tokens
        from counted
        where api_key_id is not null
        group by all
    ) to $out (format parquet)
"""

connection = duckdb.connect()
connection.execute("set preserve_insertion_order = false; set enable_progress_bar = false")
connection.execute(
    """
    create table request as
    select *, cast(timestamp as date) as day, hash(organization_id, request_id) as request_hash
    from read_parquet($events || '/**/*.parquet', hive_partitioning = false)
    """,
    {"events": events},
)
connection.execute(ROLLUP, {"out": out})
