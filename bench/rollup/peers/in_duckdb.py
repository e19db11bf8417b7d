"""The job in DuckDB: python in_duckdb.py FOLDER_OF_RAW OUT.parquet"""

import sys

import duckdb

raw, out = sys.argv[1:]

# The cost as text: read as DECIMAL(18, 12), a number of 15 digits would lose the last to a double, and a thirteenth
# decimal would be rounded away. Six decimals of 15 digits survive the double.
# Without records=true a line that holds an array may turn the lines around it into one column of text.
LINES = """
    read_json(
        $raw || '/**/*.jsonl*',
        format = 'newline_delimited',
        records = true,
        ignore_errors = true,
        columns = {
            request_id: 'varchar', timestamp: 'varchar', organization_id: 'varchar', api_key_id: 'varchar',
            cost: 'varchar', synapses: 'decimal(18, 6)', neurons: 'decimal(18, 6)', model: 'varchar',
            endpoint: 'varchar', status: 'smallint', input_tokens: 'bigint', output_tokens: 'bigint'
        }
    )
"""

# A time without a zone is no moment. Of the zones nearly all are Z, and a plain timestamp is cheaper to read.
TYPED_LINES = f"""
    select
        * replace (
            try_cast(cost as decimal(18, 12)) as cost,
            coalesce(synapses, 0) as synapses,
            coalesce(neurons, 0) as neurons,
            coalesce(input_tokens, 0) as input_tokens,
            coalesce(output_tokens, 0) as output_tokens
        ),
        case
            when timestamp[-1] = 'Z' then try_cast(timestamp[:-2] as timestamp)
            when timestamp[-6] in ('+', '-') then cast(try_cast(timestamp as timestamptz) as timestamp)
        end as instant
    from {LINES}
    where regexp_full_match(cost, '[0-9]+(\\.[0-9]{{1,12}})?([eE]-?[0-9]+)?')
"""

TYPED_ROWS = "select *, cast(timestamp as timestamp) as instant from read_parquet($raw || '/**/*.parquet')"

REQUESTS = """
    create table request as
    select
        request_id, instant, organization_id, api_key_id, cost, synapses, neurons, model, endpoint, status,
        input_tokens, output_tokens, cast(instant as date) as day, hash(organization_id, request_id) as request_hash
    from ({typed})
    where length(request_id) between 1 and 128
        and instant >= '2020-01-01' and instant < '2031-01-01'
        and regexp_full_match(organization_id, '[A-Za-z0-9_-]{{1,128}}')
        and (api_key_id is null or regexp_full_match(api_key_id, '[A-Za-z0-9_.:-]{{1,128}}'))
        and cost >= 0 and cost < 1000000
"""

# To rank all rows costs more: only those whose hash stands more than once are.
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
                order by instant, api_key_id nulls first, cost, synapses, neurons, model nulls first,
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
connection.execute("set timezone = 'UTC'; set preserve_insertion_order = false; set enable_progress_bar = false")
(has_rows,) = connection.execute("select count(*) > 0 from glob($raw || '/**/*.parquet')", {"raw": raw}).fetchone()
typed = TYPED_ROWS if has_rows else TYPED_LINES
connection.execute(REQUESTS.format(typed=typed), {"raw": raw})
connection.execute(ROLLUP, {"out": out})
