-- Grain: day, organization, API key, model. The sums of a day's pieces, added up, in the columns and the order of roll_up_days.
-- Inputs: some_sums: rows of roll_up_days, or of one of its like, over some of the events or of the copies.
-- Sessions have no tokens to be made into units: a piece in which nobody else asks for units does not say theirs, and what
-- another one takes off would be left below zero.
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
    cast(sum(some_sums.with_input) as bigint) as with_input,
    cast(sum(some_sums.with_output) as bigint) as with_output,
    cast(case when sum(some_sums.with_input) != 0 then sum(input_tokens) end as decimal(38, 0)) as input_tokens,
    cast(case when sum(some_sums.with_output) != 0 then sum(output_tokens) end as decimal(38, 0)) as output_tokens,
    cast(case when api_key_id is null then 0 else sum(neuron_tokens) end as decimal(38, 0)) as neuron_tokens,
    cast(case when api_key_id is null then 0 else sum(synapse_tokens) end as decimal(38, 0)) as synapse_tokens,
    cast(sum(unpriced) as bigint) as unpriced,
    cast(sum(without_tokens) as bigint) as without_tokens,
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
