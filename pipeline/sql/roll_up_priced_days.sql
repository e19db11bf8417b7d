-- Grain: day, organization, API key, model. As roll_up_days, where some lines do not say what they cost or used, and every
-- price is a whole number of 10^-12 for a token: then the cost of all tokens of a row is the sum of its requests' costs to
-- the last digit, and nothing is looked up line by line. Else see roll_up_rounded_days.
-- Inputs: events, copies; period (stretches of the days in which no price changes), tariff (what the book says to the days'
-- demand).
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
        sum(requests) filter (where cost is null and api_key_id is not null) as asked_requests,
        sum(input_tokens) filter (where cost is null and api_key_id is not null) as asked_input,
        sum(cached_input_tokens) filter (where cost is null and api_key_id is not null) as asked_cached_input,
        sum(output_tokens) filter (where cost is null and api_key_id is not null) as asked_output,
        sum(input_tokens) filter (where neurons is null) as neuron_tokens,
        sum(output_tokens) filter (where synapses is null) as synapse_tokens,
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
        period.start
),

priced as (
    select
        summed.*,
        cast(asked_input - asked_cached_input as hugeint) * cast(tariff.input as hugeint)
        + cast(asked_cached_input as hugeint) * cast(tariff.cached_input as hugeint)
        + cast(asked_output as hugeint) * cast(tariff.output as hugeint)
        + cast(asked_requests as hugeint) * cast(tariff.request as hugeint) as cost_units,
        case when tariff.day is null then asked_requests end as unpriced
    from summed
    left join tariff
        on summed.day = tariff.day
        and summed.model is not distinct from tariff.model
        and summed.start >= tariff.start
        and summed.start < tariff.end
)

select
    organization_id,
    day,
    api_key_id,
    model,
    cast(sum(requests) as bigint) as requests,
    cast(coalesce(sum(failed_requests), 0) as bigint) as failed_requests,
    cast(
        coalesce(sum(cost), 0) + coalesce(cast(sum(cost_units) as decimal(38, 0)) * 0.000000000001, 0) as decimal(38, 12)
    ) as cost,
    cast(coalesce(sum(synapses), 0) as decimal(38, 6)) as synapses,
    cast(coalesce(sum(neurons), 0) as decimal(38, 6)) as neurons,
    cast(sum(input_tokens) as decimal(38, 0)) as input_tokens,
    cast(sum(output_tokens) as decimal(38, 0)) as output_tokens,
    cast(coalesce(sum(neuron_tokens), 0) as decimal(38, 0)) as neuron_tokens,
    cast(coalesce(sum(synapse_tokens), 0) as decimal(38, 0)) as synapse_tokens,
    cast(coalesce(sum(unpriced), 0) as bigint) as unpriced,
    cast(sum(lines) as bigint) as lines
from priced
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
