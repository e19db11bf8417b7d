-- Grain: day, organization, API key, model. As roll_up_days, where some lines do not say what they cost or used, and every
-- price is a whole number of 10^-12 for a token: then the cost of all tokens of a row is the sum of its requests' costs to
-- the last digit, and nothing is looked up line by line. Else see roll_up_rounded_days.
-- Inputs: events, copies; period (stretches of the days in which no price changes), tariff, factor (what the book says to
-- the days' demand); half_even.
with line as (
    select
        date '1970-01-01' + cast(epoch_us(timestamp) // 86400000000 as integer) as day,
        organization_id,
        api_key_id,
        model,
        timestamp,
        1 as lines,
        1 as requests,
        cost,
        synapses,
        neurons,
        status,
        input_tokens,
        least(coalesce(cached_input_tokens, 0), input_tokens) as cached_input_tokens,
        output_tokens
    from events

    union all

    select
        day,
        organization_id,
        api_key_id,
        model,
        timestamp,
        0,
        -1,
        -cost,
        -synapses,
        -neurons,
        status,
        -input_tokens,
        -least(coalesce(cached_input_tokens, 0), input_tokens),
        -output_tokens
    from copies
    where place > 1
),

summed as (
    select
        organization_id,
        line.day,
        api_key_id,
        model,
        period.start,
        sum(requests) as requests,
        sum(requests) filter (where status >= 400) as failed_requests,
        sum(cost) as cost,
        sum(synapses) as synapses,
        sum(neurons) as neurons,
        sum(input_tokens) as input_tokens,
        sum(output_tokens) as output_tokens,
        sum(cached_input_tokens) as cached_input_tokens,
        cost is null as without_cost,
        neurons is null as without_neurons,
        synapses is null as without_synapses,
        sum(lines) as lines
    from line
    left join period
        on line.day = period.day
        and line.timestamp >= period.start
        and line.timestamp < period.end
    group by
        organization_id,
        line.day,
        api_key_id,
        model,
        period.start,
        without_cost,
        without_neurons,
        without_synapses
),

priced as (
    select
        summed.*,
        case
            when without_cost
                then cast(input_tokens - cached_input_tokens as hugeint) * cast(tariff.input as hugeint)
                + cast(cached_input_tokens as hugeint) * cast(tariff.cached_input as hugeint)
                + cast(output_tokens as hugeint) * cast(tariff.output as hugeint)
                + cast(requests as hugeint) * cast(tariff.request as hugeint)
        end as cost_units,
        without_cost and tariff.day is null as without_price
    from summed
    left join tariff
        on summed.day = tariff.day
        and summed.model is not distinct from tariff.model
        and summed.start >= tariff.start
        and summed.start < tariff.end
),

of_day as (
    select
        organization_id,
        day,
        api_key_id,
        model,
        sum(requests) as requests,
        sum(failed_requests) as failed_requests,
        sum(cost) as cost,
        sum(cost_units) as cost_units,
        sum(synapses) as synapses,
        sum(neurons) as neurons,
        sum(input_tokens) as input_tokens,
        sum(output_tokens) as output_tokens,
        sum(input_tokens) filter (where without_neurons) as neuron_tokens,
        sum(output_tokens) filter (where without_synapses) as synapse_tokens,
        sum(requests) filter (where without_price) as unpriced,
        sum(lines) as lines
    from priced
    group by
        organization_id,
        day,
        api_key_id,
        model
)

select
    organization_id,
    day,
    api_key_id,
    model,
    cast(requests as bigint) as requests,
    cast(coalesce(failed_requests, 0) as bigint) as failed_requests,
    cast(coalesce(cost, 0) + coalesce(cast(cost_units as decimal(38, 0)) * 0.000000000001, 0) as decimal(38, 12)) as cost,
    cast(coalesce(synapses, 0) as decimal(38, 6)) as synapses,
    cast(coalesce(neurons, 0) as decimal(38, 6)) as neurons,
    cast(input_tokens as decimal(38, 0)) as input_tokens,
    cast(output_tokens as decimal(38, 0)) as output_tokens,
    cast(coalesce(neuron_tokens, 0) as decimal(38, 0)) as neuron_tokens,
    cast(coalesce(synapse_tokens, 0) as decimal(38, 0)) as synapse_tokens,
    cast(coalesce(unpriced, 0) as bigint) as unpriced,
    cast(lines as bigint) as lines
from of_day
order by
    day,
    organization_id,
    api_key_id,
    model nulls first
