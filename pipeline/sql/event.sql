-- Grain: one accepted line of one raw file.
-- Inputs: judged.
-- The line settles ties, so that the same content makes the same bytes.
select
    day,
    request_id,
    timestamp at time zone 'UTC' as timestamp,
    organization_id,
    api_key_id,
    cost,
    synapses,
    neurons,
    model,
    endpoint,
    status,
    input_tokens,
    output_tokens
from judged
where reason is null and not suspect
order by
    day,
    organization_id,
    api_key_id,
    line
