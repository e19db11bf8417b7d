-- Grain: day, model, currency. What the days ask of a price book and of rates: requests with an API key that do not say
-- their cost, their synapses or neurons, or say their cost in a stated currency.
-- Inputs: events. A copy that does not count asks too: it may count as soon as another file is gone.
select
    date '1970-01-01' + cast(epoch_us(timestamp) // 86400000000 as integer) as day,
    model,
    currency,
    bool_or(cost is null) as without_cost,
    bool_or(synapses is null or neurons is null) as without_units,
    coalesce(max(input_tokens) filter (where cost is null), 0) as most_input,
    coalesce(max(output_tokens) filter (where cost is null), 0) as most_output,
    coalesce(max(cost) filter (where currency is not null), 0) as most_cost
from events
where
    (cost is null or synapses is null or neurons is null or currency is not null)
    and api_key_id is not null
group by
    day,
    model,
    currency
