-- Grain: one line that may stand more than once, with its day and its place among the copies of its request there. Place 1
-- counts.
-- Inputs: events (of any days).
-- Requests whose hash occurs once are left alone; only the others are ranked, by their content alone. Two different
-- requests may share a hash, and one may stand on two days: they are told apart here, by what identifies them.
-- conflicting: whether a copy differs from the one that counts in any column. disagreeing: whether it does in a billed
-- value; a count of tokens that is not there bills none. Where the most complete copy counts, one that has no more of
-- anything is an earlier state of it, and agrees.
create or replace table copies as
with repeated as (
    select hash(organization_id, request_id) as request_hash
    from events
    group by request_hash
    having count(*) > 1
),

candidate as (
    select
        *,
        date '1970-01-01' + cast(epoch_us(timestamp) // 86400000000 as integer) as day
    from events
    where hash(organization_id, request_id) in (select request_hash from repeated)
),

of_request as (
    select
        *,
        coalesce(bool_or(most_complete) over (partition by day, organization_id, request_id), false) as by_completeness
    from candidate
),

placed as (
    select
        *,
        row_number() over request as place,
        first_value(timestamp) over request as counted_timestamp,
        first_value(api_key_id) over request as counted_api_key_id,
        first_value(cost) over request as counted_cost,
        first_value(synapses) over request as counted_synapses,
        first_value(neurons) over request as counted_neurons,
        first_value(model) over request as counted_model,
        first_value(endpoint) over request as counted_endpoint,
        first_value(status) over request as counted_status,
        first_value(input_tokens) over request as counted_input,
        first_value(output_tokens) over request as counted_output,
        first_value(cached_input_tokens) over request as counted_cached,
        first_value(cache_write_tokens) over request as counted_cache_write,
        first_value(reasoning_tokens) over request as counted_reasoning,
        first_value(currency) over request as counted_currency
    from of_request
    window request as (
        partition by
            day,
            organization_id,
            request_id
        order by
            case when by_completeness then output_tokens end desc nulls last,
            case when by_completeness then input_tokens end desc nulls last,
            case when by_completeness then cost end desc nulls last,
            timestamp,
            api_key_id nulls first,
            cost nulls first,
            synapses nulls first,
            neurons nulls first,
            model nulls first,
            endpoint nulls first,
            status nulls first,
            input_tokens nulls first,
            output_tokens nulls first,
            cached_input_tokens nulls first,
            cache_write_tokens nulls first,
            reasoning_tokens nulls first,
            currency nulls first
    )
),

compared as (
    select
        *,
        api_key_id is distinct from counted_api_key_id
        or model is distinct from counted_model
        or (currency is distinct from counted_currency and cost is not null and counted_cost is not null) as of_another,
        cost is distinct from counted_cost
        or synapses is distinct from counted_synapses
        or neurons is distinct from counted_neurons
        or coalesce(input_tokens, 0) != coalesce(counted_input, 0)
        or coalesce(output_tokens, 0) != coalesce(counted_output, 0)
        or coalesce(cached_input_tokens, 0) != coalesce(counted_cached, 0)
        or coalesce(cache_write_tokens, 0) != coalesce(counted_cache_write, 0)
        or coalesce(reasoning_tokens, 0) != coalesce(counted_reasoning, 0) as with_other_amounts,
        coalesce(cost, 0) <= coalesce(counted_cost, 0)
        and coalesce(synapses, 0) <= coalesce(counted_synapses, 0)
        and coalesce(neurons, 0) <= coalesce(counted_neurons, 0)
        and coalesce(input_tokens, 0) <= coalesce(counted_input, 0)
        and coalesce(output_tokens, 0) <= coalesce(counted_output, 0)
        and coalesce(cached_input_tokens, 0) <= coalesce(counted_cached, 0)
        and coalesce(cache_write_tokens, 0) <= coalesce(counted_cache_write, 0)
        and coalesce(reasoning_tokens, 0) <= coalesce(counted_reasoning, 0) as is_earlier_state
    from placed
)

select
    day,
    organization_id,
    request_id,
    timestamp,
    api_key_id,
    cost,
    synapses,
    neurons,
    model,
    status,
    input_tokens,
    output_tokens,
    cached_input_tokens,
    cache_write_tokens,
    reasoning_tokens,
    currency,
    place,
    place > 1
        and (
            of_another
            or with_other_amounts
            or timestamp is distinct from counted_timestamp
            or input_tokens is distinct from counted_input
            or output_tokens is distinct from counted_output
            or cached_input_tokens is distinct from counted_cached
            or cache_write_tokens is distinct from counted_cache_write
            or reasoning_tokens is distinct from counted_reasoning
            or endpoint is distinct from counted_endpoint
            or status is distinct from counted_status
            or currency is distinct from counted_currency
        ) as conflicting,
    place > 1 and (of_another or (with_other_amounts and not (by_completeness and is_earlier_state))) as disagreeing
from compared
