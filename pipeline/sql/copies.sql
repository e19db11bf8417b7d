-- Grain: one line that may stand more than once, with its day and its place among the copies of its request there. Place 1
-- counts.
-- Inputs: events (of any days).
-- Requests whose hash occurs once are left alone; only the others are ranked, by their content alone. Two different
-- requests may share a hash, and one may stand on two days: they are told apart here, by what identifies them.
create or replace table copies as
with repeated as (
    select hash(organization_id, request_id) as request_hash
    from events
    group by request_hash
    having count(*) > 1
),

candidate as (
    select
        *,
        date '1970-01-01' + cast(epoch_us(timestamp) // 86400000000 as integer) as day
    from events
    where hash(organization_id, request_id) in (select request_hash from repeated)
)

select
    *,
    row_number() over request as place,
    row_number() over request > 1
        and (
            timestamp is distinct from first_value(timestamp) over request
            or api_key_id is distinct from first_value(api_key_id) over request
            or cost is distinct from first_value(cost) over request
            or synapses is distinct from first_value(synapses) over request
            or neurons is distinct from first_value(neurons) over request
            or model is distinct from first_value(model) over request
            or endpoint is distinct from first_value(endpoint) over request
            or status is distinct from first_value(status) over request
            or input_tokens is distinct from first_value(input_tokens) over request
            or output_tokens is distinct from first_value(output_tokens) over request
            or cached_input_tokens is distinct from first_value(cached_input_tokens) over request
            or currency is distinct from first_value(currency) over request
        ) as conflicting
from candidate
window request as (
    partition by
        day,
        organization_id,
        request_id
    order by
        timestamp,
        api_key_id nulls first,
        cost nulls first,
        synapses nulls first,
        neurons nulls first,
        model nulls first,
        endpoint nulls first,
        status nulls first,
        input_tokens,
        output_tokens,
        cached_input_tokens nulls first,
        currency nulls first
)
