-- The native format, as lines of JSON: its fifteen fields as JSON values, null where the line has no such field.
-- Inputs: lines (line, text, sound, plain, reason).
-- One parse for all fields; of a repeated name the first counts. A text that is no JSON yields nulls.
with parsed as (
    select
        line,
        sound,
        plain,
        reason,
        try(json_extract(text, [
            '$.request_id',
            '$.timestamp',
            '$.organization_id',
            '$.api_key_id',
            '$.cost',
            '$.synapses',
            '$.neurons',
            '$.model',
            '$.endpoint',
            '$.status',
            '$.input_tokens',
            '$.output_tokens',
            '$.cached_input_tokens',
            '$.cache_write_tokens',
            '$.reasoning_tokens'
        ])) as field
    from lines
)

select
    line,
    sound,
    plain,
    reason,
    cast(field[1] as varchar) as request_id,
    cast(field[2] as varchar) as timestamp,
    cast(field[3] as varchar) as organization_id,
    cast(field[4] as varchar) as api_key_id,
    cast(field[5] as varchar) as cost,
    cast(field[6] as varchar) as synapses,
    cast(field[7] as varchar) as neurons,
    cast(field[8] as varchar) as model,
    cast(field[9] as varchar) as endpoint,
    cast(field[10] as varchar) as status,
    cast(field[11] as varchar) as input_tokens,
    cast(field[12] as varchar) as output_tokens,
    cast(field[13] as varchar) as cached_input_tokens,
    cast(field[14] as varchar) as cache_write_tokens,
    cast(field[15] as varchar) as reasoning_tokens,
    cast(null as varchar) as deployed_model,
    cast(null as varchar) as provider,
    cast(0 as bigint) as tokens_when_missing,
    cast(null as varchar) as currency,
    false as book_prices,
    false as tokens_as_units,
    false as cached_beside_input,
    cast(null as boolean) as most_complete
from parsed
