-- The log of our own gateway; a line is a batch of calls.
-- reads: jsonl
-- currency: EUR
-- prices: record
-- units: tokens
with call as (
    select
        line,
        record->>'tenant' as tenant,
        unnest(json_extract(record, '$.calls[*]')) as call
    from records
)

select
    line,
    call->>'id' as request_id,
    to_timestamp(cast(call->>'at' as bigint)) as timestamp,
    tenant as organization_id,
    call->>'key' as api_key_id,
    try_cast(call->>'cents' as decimal(18, 4)) * 0.01 as cost,
    null as model,
    null as endpoint,
    cast(call->>'status' as smallint) as status,
    call->>'in' as input_tokens,
    call->>'out' as output_tokens
from call
