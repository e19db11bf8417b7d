-- Grain: organization, API key, model. What counts as API-key usage of the day $day.
-- Inputs: usage_of_day.
select
    organization_id,
    $day as day,
    api_key_id,
    model,
    requests,
    failed_requests,
    cost,
    synapses,
    neurons,
    input_tokens,
    output_tokens
from usage_of_day
where api_key_id is not null
order by
    organization_id,
    day,
    api_key_id,
    model nulls first
