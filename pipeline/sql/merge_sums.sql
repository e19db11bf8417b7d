-- Grain: day, organization, API key, model. The sums of a day's pieces, added up, in the columns and the order of roll_up_days.
-- Inputs: some_sums: rows of roll_up_days, or of one of its like, over some of the events or of the copies.
select
    organization_id,
    day,
    api_key_id,
    model,
    cast(sum(requests) as bigint) as requests,
    cast(sum(failed_requests) as bigint) as failed_requests,
    cast(sum(cost) as decimal(38, 12)) as cost,
    cast(sum(synapses) as decimal(38, 6)) as synapses,
    cast(sum(neurons) as decimal(38, 6)) as neurons,
    cast(sum(input_tokens) as decimal(38, 0)) as input_tokens,
    cast(sum(output_tokens) as decimal(38, 0)) as output_tokens,
    cast(sum(neuron_tokens) as decimal(38, 0)) as neuron_tokens,
    cast(sum(synapse_tokens) as decimal(38, 0)) as synapse_tokens,
    cast(sum(unpriced) as bigint) as unpriced,
    cast(sum(lines) as bigint) as lines
from some_sums
group by
    organization_id,
    day,
    api_key_id,
    model
order by
    day,
    organization_id,
    api_key_id,
    model nulls first
