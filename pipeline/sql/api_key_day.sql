-- Grain: organization, day, API key, model. The month's days as they were rolled up.
-- Inputs: daily (the month's days).
select
    organization_id,
    day,
    api_key_id,
    model,
    requests,
    failed_requests,
    cost,
    synapses,
    neurons,
    input_tokens,
    output_tokens,
    unpriced
from daily
order by
    organization_id,
    day,
    api_key_id,
    model nulls first
