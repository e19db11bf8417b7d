"""The job in ClickHouse, in process: python in_chdb.py FOLDER_OF_RAW OUT.parquet"""

import sys
from pathlib import Path

from chdb import session

raw, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()

FIELDS = """request_id Nullable(String), timestamp Nullable(String), organization_id Nullable(String),
    api_key_id Nullable(String), cost Nullable(String), synapses Nullable(String), neurons Nullable(String),
    model Nullable(String), endpoint Nullable(String), status Nullable(Int16),
    input_tokens Nullable(Int64), output_tokens Nullable(Int64)"""
# JSONEachRow would do, were it not that a line that ends within a string takes the next one with it.
# The best effort takes 25:10 for the next day. Bad UTF-8 is nothing that ClickHouse minds. Of a number JSONExtract
# gives the text.
TYPED_LINES = f"""
    select
        line.request_id as request_id,
        if(
            match(ifNull(line.timestamp, ''), 'T([01][0-9]|2[0-3]):.*(Z|[+-][0-9]{{2}}:[0-9]{{2}})$'),
            parseDateTime64BestEffortOrNull(line.timestamp, 6, 'UTC'),
            null
        ) as instant,
        line.organization_id as organization_id,
        line.api_key_id as api_key_id,
        toDecimal128OrNull(line.cost, 12) as cost,
        ifNull(toDecimal128OrNull(line.synapses, 6), 0) as synapses,
        ifNull(toDecimal128OrNull(line.neurons, 6), 0) as neurons,
        line.model as model,
        line.endpoint as endpoint,
        line.status as status,
        ifNull(line.input_tokens, 0) as input_tokens,
        ifNull(line.output_tokens, 0) as output_tokens
    from (
        select JSONExtract(text, 'Tuple({FIELDS})') as line
        from file('{raw}/**/*.jsonl*', LineAsString, 'text String')
        where isValidUTF8(text)
    )
    where match(line.cost, '^[0-9]+(\\.[0-9]{{1,12}})?([eE]-?[0-9]+)?$')
"""
TYPED_ROWS = f"""
    select
        request_id, timestamp as instant, organization_id, api_key_id, cost, synapses, neurons, model, endpoint, status,
        input_tokens, output_tokens
    from file('{raw}/**/*.parquet', Parquet)
"""

typed = TYPED_ROWS if any(raw.rglob("*.parquet")) else TYPED_LINES

engine = session.Session()
engine.query("create database work; use work")
engine.query(f"""
    create table request engine = Memory as
    select *, toDate(instant) as day, sipHash64(organization_id, request_id, day) as request_hash
    from ({typed})
    where lengthUTF8(request_id) between 1 and 128
        and instant >= toDateTime64('2020-01-01 00:00:00', 6, 'UTC')
        and instant < toDateTime64('2031-01-01 00:00:00', 6, 'UTC')
        and match(organization_id, '^[A-Za-z0-9_-]{{1,128}}$')
        and (api_key_id is null or match(api_key_id, '^[A-Za-z0-9_.:-]{{1,128}}$'))
        and cost >= 0
        and cost < 1000000
""")
engine.query("""
    create table repeated engine = Memory as
    select request_hash from request group by request_hash having count() > 1
""")
engine.query(f"""
    select
        assumeNotNull(organization_id) as organization_id,
        assumeNotNull(day) as day,
        assumeNotNull(api_key_id) as api_key_id,
        model,
        toInt64(count()) as requests,
        toInt64(countIf(status >= 400)) as failed_requests,
        sum(cost) as cost,
        sum(synapses) as synapses,
        sum(neurons) as neurons,
        sum(toDecimal128(input_tokens, 0)) as input_tokens,
        sum(toDecimal128(output_tokens, 0)) as output_tokens
    from (
        select * from request where request_hash not in repeated
        union all
        select * from request where request_hash in repeated
        order by instant, api_key_id nulls first, cost, synapses, neurons, model nulls first,
            endpoint nulls first, status nulls first, input_tokens, output_tokens
        limit 1 by organization_id, request_id, day
    )
    where api_key_id is not null
    group by organization_id, day, api_key_id, model
    into outfile '{out}' truncate
    format Parquet
    settings output_format_parquet_string_as_string = 1, prefer_column_name_to_alias = 1
""")
