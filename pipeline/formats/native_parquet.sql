-- The native format, as rows of Parquet: its twelve columns as JSON values, and the row as the JSON line it stands for.
-- Inputs: lines (line, reason, and the columns as strings, integers, doubles or booleans).
-- A double that is no number is refused by its type; one beyond the largest is out of range: 1e999 is JSON for that.
with as_json as (
    select
        line,
        reason,
        cast(to_json(request_id) as varchar) as request_id,
        cast(to_json(timestamp) as varchar) as timestamp,
        cast(to_json(organization_id) as varchar) as organization_id,
        coalesce(cast(to_json(api_key_id) as varchar), 'null') as api_key_id,
        case cast(to_json(cost) as varchar)
            when 'NaN' then 'true'
            when 'Infinity' then '1e999'
            when '-Infinity' then '-1e999'
            else cast(to_json(cost) as varchar)
        end as cost,
        case cast(to_json(synapses) as varchar)
            when 'NaN' then 'true'
            when 'Infinity' then '1e999'
            when '-Infinity' then '-1e999'
            else cast(to_json(synapses) as varchar)
        end as synapses,
        case cast(to_json(neurons) as varchar)
            when 'NaN' then 'true'
            when 'Infinity' then '1e999'
            when '-Infinity' then '-1e999'
            else cast(to_json(neurons) as varchar)
        end as neurons,
        cast(to_json(model) as varchar) as model,
        cast(to_json(endpoint) as varchar) as endpoint,
        cast(to_json(status) as varchar) as status,
        cast(to_json(input_tokens) as varchar) as input_tokens,
        cast(to_json(output_tokens) as varchar) as output_tokens
    from lines
)

select
    line,
    '{'
    || '"request_id":' || coalesce(request_id, 'null')
    || ',"timestamp":' || coalesce(timestamp, 'null')
    || ',"organization_id":' || coalesce(organization_id, 'null')
    || ',"api_key_id":' || api_key_id
    || ',"cost":' || coalesce(cost, 'null')
    || ',"synapses":' || coalesce(synapses, 'null')
    || ',"neurons":' || coalesce(neurons, 'null')
    || ',"model":' || coalesce(model, 'null')
    || ',"endpoint":' || coalesce(endpoint, 'null')
    || ',"status":' || coalesce(status, 'null')
    || ',"input_tokens":' || coalesce(input_tokens, 'null')
    || ',"output_tokens":' || coalesce(output_tokens, 'null')
    || '}' as text,
    true as sound,
    false as plain,
    reason,
    request_id,
    timestamp,
    organization_id,
    api_key_id,
    cost,
    synapses,
    neurons,
    model,
    endpoint,
    status,
    input_tokens,
    output_tokens
from as_json
