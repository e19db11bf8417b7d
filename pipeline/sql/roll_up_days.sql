-- Grain: day, organization, API key, model. What the days' requests sum to, each request once: all lines, less the copies
-- that do not count. Sums are exact, so what was added is taken away again without a trace.
-- Inputs: events, copies; every line says its cost, synapses and neurons. Interactive sessions are the rows without an API
-- key; lines: those of events, copies too. with_input, with_output: requests that say how many tokens they had; where none
-- does, the sum is null. Where every line is a copy that does not count, requests are none.
with line as (
    select
        date '1970-01-01' + cast(epoch_us(timestamp) // 86400000000 as integer) as day,
        organization_id,
        api_key_id,
        model,
        1 as lines,
        1 as requests,
        cost,
        synapses,
        neurons,
        status,
        input_tokens,
        output_tokens
    from events

    union all

    select
        day,
        organization_id,
        api_key_id,
        model,
        0,
        -1,
        -cost,
        -synapses,
        -neurons,
        status,
        -input_tokens,
        -output_tokens
    from copies
    where place > 1
)

select
    organization_id,
    day,
    api_key_id,
    model,
    cast(sum(requests) as bigint) as requests,
    cast(coalesce(sum(requests) filter (where status >= 400), 0) as bigint) as failed_requests,
    cast(sum(cost) as decimal(38, 12)) as cost,
    cast(sum(synapses) as decimal(38, 6)) as synapses,
    cast(sum(neurons) as decimal(38, 6)) as neurons,
    cast(coalesce(sum(requests) filter (where input_tokens is not null), 0) as bigint) as with_input,
    cast(coalesce(sum(requests) filter (where output_tokens is not null), 0) as bigint) as with_output,
    cast(case when with_input != 0 then sum(input_tokens) end as decimal(38, 0)) as input_tokens,
    cast(case when with_output != 0 then sum(output_tokens) end as decimal(38, 0)) as output_tokens,
    cast(0 as decimal(38, 0)) as neuron_tokens,
    cast(0 as decimal(38, 0)) as synapse_tokens,
    cast(0 as bigint) as unpriced,
    cast(0 as bigint) as without_tokens,
    cast(sum(lines) as bigint) as lines
from line
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
