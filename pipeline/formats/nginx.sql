-- The access log of nginx before an API, as JSON: the log_format line is in docs/formats.md.
-- producer: nginx 1.22.1
-- reads: jsonl, parquet
-- prices: book
-- units: tokens
-- rounds: nothing; nginx knows milliseconds
-- nginx writes a line when a request ends: the request began request_time earlier.
-- A variable without a value is an empty text, or '-' where the log_format has another escape than json: both are missing.
-- An empty upstream_status says that nginx answered without its upstream, as from its cache: such a request costs 0.
with field as (
    select
        line,
        json_extract_string(record, [
            '$.request_id',
            '$.msec',
            '$.request_time',
            '$.http_x_org_id',
            '$.http_x_api_key_id',
            '$.http_x_model',
            '$.uri',
            '$.status',
            '$.upstream_x_prompt_tokens',
            '$.upstream_x_completion_tokens',
            '$.upstream_status'
        ]) as written
    from records
),

known as (
    select
        line,
        list_transform(written, lambda text: case when text not in ('', '-') then text end) as value,
        case when written[11] in ('', '-') then '0' end as cost
    from field
)

select
    line,
    value[1] as request_id,
    coalesce(
        strftime(
            make_timestamp(
                try_cast(
                    (try_cast(number_text(value[2]) as decimal(18, 3)) - try_cast(number_text(value[3]) as decimal(18, 3)))
                    * 1000000
                    as bigint
                )
            ),
            '%Y-%m-%dT%H:%M:%S.%fZ'
        ),
        value[2]
    ) as timestamp,
    value[4] as organization_id,
    value[5] as api_key_id,
    cost,
    null as synapses,
    null as neurons,
    value[6] as model,
    value[7] as endpoint,
    value[8] as status,
    value[9] as input_tokens,
    value[10] as output_tokens
from known
