-- Grain: day, organization, API key, model. As roll_up_priced_days, where prices or rates have so many decimals that a request's
-- cost is to be rounded, or an own cost is in another currency than the deployment's: line by line.
-- Inputs: events, copies; tariff, exchange (what book and rates say to the days' demand); in_64_bits or in_128_bits.
-- The price in force at a request's own moment is that of its model whose stretch of time it falls in. That is an ASOF join;
-- DuckDB's own sorts all lines for it and takes seven times as long as this one, by hash and range.
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
        currency,
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
        timestamp,
        0,
        -1,
        cost,
        currency,
        synapses,
        neurons,
        status,
        input_tokens,
        least(coalesce(cached_input_tokens, 0), coalesce(input_tokens, 0)),
        coalesce(cache_write_tokens, 0),
        output_tokens,
        coalesce(input_tokens, output_tokens, cached_input_tokens, cache_write_tokens, reasoning_tokens) is null
    from copies
    where place > 1
),

reckoned as (
    select
        line.*,
        cost is null and line.model is not null and is_tokenless and coalesce(status < 400, true) as without_tokens,
        case
            when line.api_key_id is null or without_tokens
                then null
            when line.cost is not null and line.currency is null
                then whole(line.cost * 1000000000000)
            when line.cost is not null
                then in_range(whole(line.cost * 1000000000000) * whole(exchange.rate))
            else in_range(
                whole(coalesce(line.input_tokens, 0) - cached - written) * whole(tariff.input)
                + whole(cached) * whole(tariff.cached_input)
                + whole(written) * whole(tariff.cache_write)
                + whole(coalesce(line.output_tokens, 0)) * whole(tariff.output)
                + case when status >= 400 then whole(0) else whole(tariff.request) end
            )
        end as dividend,
        case
            when line.cost is not null and line.currency is null
                then whole(1)
            when line.cost is not null
                then whole(exchange.divisor)
            else whole(tariff.divisor)
        end as divisor
    from line
    left join tariff
        on line.day = tariff.day
        and line.model is not distinct from tariff.model
        and line.timestamp >= tariff.start
        and line.timestamp < tariff.end
    left join exchange
        on line.day = exchange.day
        and line.currency = exchange.currency
),

rounded as (
    select
        *,
        rounded(dividend, divisor) as units
    from reckoned
),

priced as (
    select
        *,
        case when cost is not null or units < 1000000000000000000 then units end as cost_units
    from rounded
),

summed as (
    select
        organization_id,
        day,
        api_key_id,
        model,
        sum(requests) as requests,
        sum(requests) filter (where status >= 400) as failed_requests,
        sum(requests * cost_units) as cost_units,
        sum(requests * synapses) as synapses,
        sum(requests * neurons) as neurons,
        sum(requests) filter (where input_tokens is not null) as with_input,
        sum(requests) filter (where output_tokens is not null) as with_output,
        sum(requests * input_tokens) as input_tokens,
        sum(requests * output_tokens) as output_tokens,
        sum(requests * input_tokens) filter (where neurons is null) as neuron_tokens,
        sum(requests * output_tokens) filter (where synapses is null) as synapse_tokens,
        sum(requests) filter (where cost_units is null) as unpriced,
        sum(requests) filter (where without_tokens) as without_tokens,
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
    cast(coalesce(cast(cost_units as decimal(38, 0)) * 0.000000000001, 0) as decimal(38, 12)) as cost,
    cast(coalesce(synapses, 0) as decimal(38, 6)) as synapses,
    cast(coalesce(neurons, 0) as decimal(38, 6)) as neurons,
    cast(coalesce(summed.with_input, 0) as bigint) as with_input,
    cast(coalesce(summed.with_output, 0) as bigint) as with_output,
    cast(case when summed.with_input != 0 then input_tokens end as decimal(38, 0)) as input_tokens,
    cast(case when summed.with_output != 0 then output_tokens end as decimal(38, 0)) as output_tokens,
    cast(coalesce(neuron_tokens, 0) as decimal(38, 0)) as neuron_tokens,
    cast(coalesce(synapse_tokens, 0) as decimal(38, 0)) as synapse_tokens,
    cast(coalesce(unpriced, 0) as bigint) as unpriced,
    cast(coalesce(without_tokens, 0) as bigint) as without_tokens,
    cast(lines as bigint) as lines
from summed
order by
    day,
    organization_id,
    api_key_id,
    model nulls first
