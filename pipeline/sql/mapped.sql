-- What the SQL of a format made of its records, as JSON values.
-- Inputs: lines (line, reason, the fields as text, and what the format's header says).
-- Text that is an integer stands for one: SQL and CSV give numbers as text.
select
    line,
    true as sound,
    false as plain,
    reason,
    cast(to_json(request_id) as varchar) as request_id,
    cast(to_json(timestamp) as varchar) as timestamp,
    cast(to_json(organization_id) as varchar) as organization_id,
    coalesce(cast(to_json(api_key_id) as varchar), 'null') as api_key_id,
    cast(to_json(cost) as varchar) as cost,
    cast(to_json(synapses) as varchar) as synapses,
    cast(to_json(neurons) as varchar) as neurons,
    cast(to_json(model) as varchar) as model,
    cast(to_json(endpoint) as varchar) as endpoint,
    case when regexp_full_match(status, '-?[0-9]+') then status else cast(to_json(status) as varchar) end as status,
    case
        when regexp_full_match(input_tokens, '-?[0-9]+') then input_tokens
        else cast(to_json(input_tokens) as varchar)
    end as input_tokens,
    case
        when regexp_full_match(output_tokens, '-?[0-9]+') then output_tokens
        else cast(to_json(output_tokens) as varchar)
    end as output_tokens,
    case
        when regexp_full_match(cached_input_tokens, '-?[0-9]+') then cached_input_tokens
        else cast(to_json(cached_input_tokens) as varchar)
    end as cached_input_tokens,
    case
        when regexp_full_match(cache_write_tokens, '-?[0-9]+') then cache_write_tokens
        else cast(to_json(cache_write_tokens) as varchar)
    end as cache_write_tokens,
    case
        when regexp_full_match(reasoning_tokens, '-?[0-9]+') then reasoning_tokens
        else cast(to_json(reasoning_tokens) as varchar)
    end as reasoning_tokens,
    cast(to_json(deployed_model) as varchar) as deployed_model,
    cast(to_json(provider) as varchar) as provider,
    cast(null as bigint) as tokens_when_missing,
    currency,
    book_prices,
    tokens_as_units,
    cached_beside_input,
    most_complete
from lines
