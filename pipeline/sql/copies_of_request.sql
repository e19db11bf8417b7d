-- Grain: line. Where the copies of one request stand, and what they say that is billed.
-- Inputs: named_events (event files, with their names), $organization_id, $request_id.
select
    parse_filename(filename) as artifact,
    line,
    api_key_id,
    model,
    cost,
    currency,
    synapses,
    neurons,
    input_tokens,
    output_tokens,
    cached_input_tokens,
    cache_write_tokens,
    reasoning_tokens
from named_events
where organization_id = $organization_id and request_id = $request_id
order by
    timestamp,
    artifact,
    line
