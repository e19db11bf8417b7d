-- Grain: organization, API key, model. The whole month.
-- Inputs: daily (the month's days).
select
    organization_id,
    api_key_id,
    model,
    cast(sum(requests) as bigint) as requests,
    cast(sum(failed_requests) as bigint) as failed_requests,
    cast(sum(cost) as decimal(38, 12)) as cost,
    cast(sum(synapses) as decimal(38, 6)) as synapses,
    cast(sum(neurons) as decimal(38, 6)) as neurons,
    cast(sum(input_tokens) as decimal(38, 0)) as input_tokens,
    cast(sum(output_tokens) as decimal(38, 0)) as output_tokens,
    cast(sum(unpriced) as bigint) as unpriced
from daily
group by
    organization_id,
    api_key_id,
    model
order by
    organization_id,
    api_key_id,
    model nulls first
