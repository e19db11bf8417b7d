-- The native format, as rows of Parquet: its fifteen columns as JSON values.
-- Inputs: lines (line, reason, and the columns as strings, integers, doubles or booleans).
-- A column that may be null is there: only JSON can leave a field out.
select
    line,
    true as sound,
    false as plain,
    reason,
    cast(to_json(request_id) as varchar) as request_id,
    cast(to_json(timestamp) as varchar) as timestamp,
    cast(to_json(organization_id) as varchar) as organization_id,
    coalesce(cast(to_json(api_key_id) as varchar), 'null') as api_key_id,
    cast(to_json(cost) as varchar) as cost,
    cast(to_json(synapses) as varchar) as synapses,
    cast(to_json(neurons) as varchar) as neurons,
    cast(to_json(model) as varchar) as model,
    cast(to_json(endpoint) as varchar) as endpoint,
    cast(to_json(status) as varchar) as status,
    cast(to_json(input_tokens) as varchar) as input_tokens,
    cast(to_json(output_tokens) as varchar) as output_tokens,
    cast(to_json(cached_input_tokens) as varchar) as cached_input_tokens,
    cast(to_json(cache_write_tokens) as varchar) as cache_write_tokens,
    cast(to_json(reasoning_tokens) as varchar) as reasoning_tokens,
    cast(null as varchar) as deployed_model,
    cast(null as varchar) as provider,
    cast(0 as bigint) as tokens_when_missing,
    cast(null as varchar) as currency,
    false as book_prices,
    false as tokens_as_units,
    false as cached_beside_input,
    cast(null as boolean) as most_complete
from lines
