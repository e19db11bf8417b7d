-- Grain: day, organization, API key, model. As roll_up_days, where some lines do not say what they cost or used, no price
-- changes within a day, and every one is a whole number of 10^-12 for a token: then the cost of all tokens of a row is the
-- sum of its requests' costs to the last digit, and nothing is looked up line by line. Else see roll_up_rounded_days.
-- A request of a model that did not fail and carries no token count has no known cost (without_tokens), whatever the book
-- says. The price of a request is for those that did not fail. Events of older releases may have more cached than input tokens.
-- Inputs: events, copies; tariff (what the book says to the days' demand).
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
        least(coalesce(cached_input_tokens, 0), coalesce(input_tokens, 0)) as cached,
        coalesce(cache_write_tokens, 0) as written,
        output_tokens,
        coalesce(input_tokens, output_tokens, cached_input_tokens, cache_write_tokens, reasoning_tokens) is null as is_tokenless
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
        -least(coalesce(cached_input_tokens, 0), coalesce(input_tokens, 0)),
        -coalesce(cache_write_tokens, 0),
        -output_tokens,
        coalesce(input_tokens, output_tokens, cached_input_tokens, cache_write_tokens, reasoning_tokens) is null
    from copies
    where place > 1
),

summed as (
    select
        organization_id,
        day,
        api_key_id,
        model,
        cost is null and api_key_id is not null as without_cost,
        cost is null and api_key_id is not null and model is not null and is_tokenless and coalesce(status < 400, true) as without_tokens,
        synapses is null as without_synapses,
        neurons is null as without_neurons,
        sum(requests) as requests,
        sum(requests) filter (where status >= 400) as failed_requests,
        sum(cost) as cost,
        sum(synapses) as synapses,
        sum(neurons) as neurons,
        coalesce(sum(input_tokens), 0) as input_tokens,
        sum(cached) as cached,
        sum(written) as written,
        coalesce(sum(output_tokens), 0) as output_tokens,
        sum(requests) filter (where input_tokens is not null) as with_input,
        sum(requests) filter (where output_tokens is not null) as with_output,
        sum(lines) as lines
    from line
    group by
        organization_id,
        day,
        api_key_id,
        model,
        without_cost,
        without_tokens,
        without_synapses,
        without_neurons
),

priced as (
    select
        summed.*,
        cast(input_tokens - cached - written as hugeint) * cast(tariff.input as hugeint)
        + cast(cached as hugeint) * cast(tariff.cached_input as hugeint)
        + cast(written as hugeint) * cast(tariff.cache_write as hugeint)
        + cast(output_tokens as hugeint) * cast(tariff.output as hugeint)
        + cast(requests - coalesce(failed_requests, 0) as hugeint) * cast(tariff.request as hugeint) as cost_units,
        without_cost and tariff.day is null as without_price
    from summed
    left join tariff
        on without_cost
        and not without_tokens
        and summed.day = tariff.day
        and summed.model is not distinct from tariff.model
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
    cast(coalesce(sum(priced.with_input), 0) as bigint) as with_input,
    cast(coalesce(sum(priced.with_output), 0) as bigint) as with_output,
    cast(case when sum(priced.with_input) != 0 then sum(input_tokens) end as decimal(38, 0)) as input_tokens,
    cast(case when sum(priced.with_output) != 0 then sum(output_tokens) end as decimal(38, 0)) as output_tokens,
    cast(coalesce(sum(input_tokens) filter (where without_neurons), 0) as decimal(38, 0)) as neuron_tokens,
    cast(coalesce(sum(output_tokens) filter (where without_synapses), 0) as decimal(38, 0)) as synapse_tokens,
    cast(coalesce(sum(requests) filter (where without_price), 0) as bigint) as unpriced,
    cast(coalesce(sum(requests) filter (where without_tokens), 0) as bigint) as without_tokens,
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
