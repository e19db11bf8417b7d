-- Grain: day, organization, API key, model. As roll_up_days, in its order, with the neurons and synapses that were not said
-- made of tokens: once, of the sum of a day, key and model.
-- Inputs: sums (the rows of roll_up_days, of one of its like, or of merge_sums); factor (what the book says to the days'
-- demand); half_even.
select
    sums.organization_id,
    sums.day,
    sums.api_key_id,
    sums.model,
    requests,
    failed_requests,
    cost,
    cast(
        sums.synapses
        + coalesce(
            cast(
                half_even(cast(synapse_tokens as hugeint) * cast(factor.synapses as hugeint), cast(synapses_divisor as hugeint))
                as decimal(38, 0)
            )
            * 0.000001,
            0
        ) as decimal(38, 6)
    ) as synapses,
    cast(
        sums.neurons
        + coalesce(
            cast(
                half_even(cast(neuron_tokens as hugeint) * cast(factor.neurons as hugeint), cast(neurons_divisor as hugeint))
                as decimal(38, 0)
            )
            * 0.000001,
            0
        ) as decimal(38, 6)
    ) as neurons,
    input_tokens,
    output_tokens,
    unpriced,
    without_tokens,
    lines
from sums
left join factor
    on sums.day = factor.day
    and sums.model is not distinct from factor.model
order by
    sums.day,
    sums.organization_id,
    sums.api_key_id,
    sums.model nulls first
