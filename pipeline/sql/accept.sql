-- The bulk read: the values of each line, typed, and whether the line is certainly a request (column `certain`).
-- Inputs: candidates; bulk_functions. `candidates` has the fields as JSON values, what the format's header says (currency,
-- book_prices, tokens_as_units, cached_beside_input, most_complete), and tokens_when_missing: the number that stands for a missing
-- token count.
-- pipeline/bulk.py decides about two kinds of values: texts that many lines share (organization, key, model, endpoint), each of
-- them once for all its lines; and whether a request may have the timestamp.
-- Each test takes less than the rule in pipeline/line.py does, and never more. A cast alone would take more: ' 1.5 ', '+5', '24:00', a
-- thirteenth decimal. A line that fails a test here is not rejected: the rule book decides about it.
-- Timestamps: a text of one of the usual lengths has two digits for each part, as its pattern has.
-- Amounts: a number is exact if the decimal nearest to its double reads back as the same double, and has at most 15 digits.
-- Counts: a number is exact if it reads back as the same text.
-- Characters: a block of plain text (ASCII without escapes) holds no character that an id may not have. `case` skips the test then,
-- which `or` would not.
with typed as (
    select
        *,
        case strlen(timestamp)
            when 22 then try_strptime(timestamp, '"%Y-%m-%dT%H:%M:%SZ"')
            when 26 then try_strptime(timestamp, '"%Y-%m-%dT%H:%M:%S.%gZ"')
            when 29 then try_strptime(timestamp, '"%Y-%m-%dT%H:%M:%S.%fZ"')
        end as usual_instant,
        try_cast(cost as double) as cost_number,
        try_cast(synapses as double) as synapses_number,
        try_cast(neurons as double) as neurons_number,
        try_cast(status as smallint) as status_number,
        try_cast(input_tokens as bigint) as input_tokens_number,
        try_cast(output_tokens as bigint) as output_tokens_number,
        try_cast(cached_input_tokens as bigint) as cached_input_tokens_number,
        try_cast(cache_write_tokens as bigint) as cache_write_tokens_number,
        try_cast(reasoning_tokens as bigint) as reasoning_tokens_number
    from candidates
),

exact as (
    select
        *,
        case
            when usual_instant is not null
                then usual_instant
            when not regexp_full_match(timestamp, '"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"')
                then null
            when ends_with(timestamp, 'Z"')
                then try_cast(substr(timestamp, 2, least(26, strlen(timestamp) - 3)) as timestamp)
            else
                try_cast(substr(timestamp, 2, least(26, strlen(timestamp) - 8)) as timestamp)
                - to_minutes(
                    case substr(timestamp, -7, 1) when '-' then -1 else 1 end
                    * (60 * cast(substr(timestamp, -6, 2) as bigint) + cast(substr(timestamp, -3, 2) as bigint))
                )
        end as instant,
        case
            when cost_number >= 0 and cost_number < 1000
                then try_cast(cost_number as decimal(18, 12))
            when regexp_full_match(cost, '"[0-9]{1,6}(?:\.[0-9]{1,12})?"')
                then cast(substr(cost, 2, strlen(cost) - 2) as decimal(18, 12))
            when regexp_full_match(cost, '"[0-9](?:\.[0-9]{1,13})?[eE]-(?:[0-9]|1[0-2])"')
                and try_cast(trim(cost, '"') as decimal(38, 26)) = try_cast(trim(cost, '"') as decimal(18, 12))
                then try_cast(trim(cost, '"') as decimal(18, 12))
        end as exact_cost,
        case
            when synapses_number >= 0 and synapses_number < 1000000000
                then try_cast(synapses_number as decimal(18, 6))
            when regexp_full_match(synapses, '"[0-9]{1,12}(?:\.[0-9]{1,6})?"')
                then cast(substr(synapses, 2, strlen(synapses) - 2) as decimal(18, 6))
        end as exact_synapses,
        case
            when neurons_number >= 0 and neurons_number < 1000000000
                then try_cast(neurons_number as decimal(18, 6))
            when regexp_full_match(neurons, '"[0-9]{1,12}(?:\.[0-9]{1,6})?"')
                then cast(substr(neurons, 2, strlen(neurons) - 2) as decimal(18, 6))
        end as exact_neurons
    from typed
)

select
    line,
    substr(request_id, 2, strlen(request_id) - 2) as request_id,
    instant as timestamp,
    organization_id,
    api_key_id,
    exact_cost as cost,
    case when tokens_as_units then exact_synapses else coalesce(exact_synapses, 0) end as synapses,
    case when tokens_as_units then exact_neurons else coalesce(exact_neurons, 0) end as neurons,
    model,
    endpoint,
    status_number as status,
    case
        when cached_beside_input and coalesce(cached_input_tokens_number, cache_write_tokens_number) is not null
            then try(
                coalesce(input_tokens_number, 0)
                + coalesce(cached_input_tokens_number, 0)
                + coalesce(cache_write_tokens_number, 0)
            )
        else coalesce(input_tokens_number, tokens_when_missing)
    end as input_tokens,
    coalesce(output_tokens_number, tokens_when_missing) as output_tokens,
    cached_input_tokens_number as cached_input_tokens,
    cache_write_tokens_number as cache_write_tokens,
    reasoning_tokens_number as reasoning_tokens,
    case when exact_cost is not null then currency end as currency,
    deployed_model,
    provider,
    most_complete,
    coalesce(
        sound
        and reason is null
        and starts_with(request_id, '"')
        and case
            when plain then true
            else regexp_full_match(request_id, '"[ !#-Z\]-~][ !#-\[\]-~]*"') and request_id not in ('"true"', '"false"', '"{}"')
        end
        and strlen(request_id) between 3 and 130
        and case
            when cost_number is null then exact_cost is not null or (book_prices and (cost is null or cost = 'null'))
            else cast(exact_cost as double) = cost_number
        end
        and case
            when synapses_number is null then synapses is null or synapses = 'null' or exact_synapses is not null
            else cast(exact_synapses as double) = synapses_number
        end
        and case
            when neurons_number is null then neurons is null or neurons = 'null' or exact_neurons is not null
            else cast(exact_neurons as double) = neurons_number
        end
        and case
            when status_number is null then status is null or status = 'null'
            else status_number between 100 and 599 and cast(status_number as varchar) = status
        end
        and is_count(input_tokens_number, input_tokens)
        and is_count(output_tokens_number, output_tokens)
        and is_count(cached_input_tokens_number, cached_input_tokens)
        and is_count(cache_write_tokens_number, cache_write_tokens)
        and is_count(reasoning_tokens_number, reasoning_tokens)
        and coalesce(reasoning_tokens_number, 0) <= coalesce(output_tokens_number, 0)
        -- Divided by four, the three of them fit into 64 bits: what is near the largest number is left to the slow path.
        and case
            when coalesce(cached_input_tokens_number, cache_write_tokens_number) is null then true
            when cached_beside_input
                then
                    coalesce(input_tokens_number, 0) // 4
                    + coalesce(cached_input_tokens_number, 0) // 4
                    + coalesce(cache_write_tokens_number, 0) // 4
                    < 2305843009213693000
            else
                coalesce(cached_input_tokens_number, 0) <= coalesce(input_tokens_number, 0)
                and coalesce(cache_write_tokens_number, 0)
                <= coalesce(input_tokens_number, 0) - coalesce(cached_input_tokens_number, 0)
        end,
        false
    ) as certain
from exact
