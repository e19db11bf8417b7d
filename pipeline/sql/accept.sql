-- The bulk read: types each line that is certainly a request; leaves any other to the second look, with its text.
-- Inputs: candidates (the format's twelve fields as JSON values), $latest (requests after it are from the future).
-- Every pattern is narrower than the rule it stands for (pipeline/line.py): a cast alone would take ' 1.5 ', '+5',
-- '24:00' or a thirteenth decimal. JSON numbers are at most 15 digits here, so that their double is exact.
insert into judged
with text_values as (
    select
        line,
        text,
        reason,
        sound,
        request_id,
        organization_id,
        api_key_id,
        cost,
        model,
        endpoint,
        timestamp,
        nullif(synapses, 'null') as synapses,
        nullif(neurons, 'null') as neurons,
        nullif(status, 'null') as status,
        nullif(input_tokens, 'null') as input_tokens,
        nullif(output_tokens, 'null') as output_tokens,
        trim(cost, '"') as cost_text,
        trim(synapses, '"') as synapses_text,
        trim(neurons, '"') as neurons_text
    from candidates
),

typed as (
    select
        *,
        case
            when regexp_full_match(timestamp, '"[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?Z"')
                then try_cast(substr(timestamp, 2, least(26, length(timestamp) - 3)) as timestamp)
            when regexp_full_match(timestamp, '"[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?[+-]([01][0-9]|2[0-3]):[0-5][0-9]"')
                then try_cast(substr(timestamp, 2, least(26, length(timestamp) - 8)) as timestamp)
                    - to_minutes(
                        case substr(timestamp, -7, 1) when '-' then -1 else 1 end
                        * (60 * cast(substr(timestamp, -6, 2) as bigint) + cast(substr(timestamp, -3, 2) as bigint))
                    )
        end as instant,
        case
            when regexp_full_match(cost_text, '[0-9]{1,6}(\.[0-9]{1,12})?') then cast(cost_text as decimal(18, 12))
            when regexp_full_match(cost_text, '[0-9](\.[0-9]{1,13})?[eE]-(0?[0-9]|1[0-2])')
                and try_cast(cost_text as decimal(38, 26)) = try_cast(cost_text as decimal(18, 12))
                then try_cast(cost_text as decimal(18, 12))
        end as exact_cost,
        case
            when synapses is null then 0
            when regexp_full_match(synapses_text, '[0-9]{1,12}(\.[0-9]{1,6})?') then cast(synapses_text as decimal(18, 6))
        end as exact_synapses,
        case
            when neurons is null then 0
            when regexp_full_match(neurons_text, '[0-9]{1,12}(\.[0-9]{1,6})?') then cast(neurons_text as decimal(18, 6))
        end as exact_neurons
    from text_values
),

verdict as (
    select
        *,
        coalesce(
            sound
            and reason is null
            and regexp_full_match(request_id, '"[ !#-\[\]-~]+"')
            and length(request_id) <= 130
            and instant >= timestamp '2020-01-01'
            and instant < timestamp '2031-01-01'
            and instant <= $latest
            and regexp_full_match(organization_id, '"[A-Za-z0-9_-]+"')
            and length(organization_id) <= 130
            and (api_key_id = 'null' or (regexp_full_match(api_key_id, '"[A-Za-z0-9_.:-]+"') and length(api_key_id) <= 130))
            and exact_cost is not null
            and (starts_with(cost, '"') or length(cost) <= 16)
            and exact_synapses is not null
            and (synapses is null or starts_with(synapses, '"') or length(synapses) <= 16)
            and exact_neurons is not null
            and (neurons is null or starts_with(neurons, '"') or length(neurons) <= 16)
            and (
                model is null
                or model = 'null'
                or (starts_with(model, '"') and not contains(model, '\') and length(model) <= 258)
            )
            and (
                endpoint is null
                or endpoint = 'null'
                or (starts_with(endpoint, '"') and not contains(endpoint, '\') and length(endpoint) <= 258)
            )
            and (status is null or regexp_full_match(status, '[1-5][0-9][0-9]'))
            and (input_tokens is null or regexp_full_match(input_tokens, '[0-9]{1,18}'))
            and (output_tokens is null or regexp_full_match(output_tokens, '[0-9]{1,18}')),
            false
        ) as accepted
    from typed
)

select
    line,
    case when not accepted and reason is null then text end as text,
    reason,
    case when accepted then cast(instant as date) end as day,
    case when accepted then substr(request_id, 2, length(request_id) - 2) end as request_id,
    case when accepted then instant end as timestamp,
    case when accepted then substr(organization_id, 2, length(organization_id) - 2) end as organization_id,
    case when accepted and api_key_id != 'null' then substr(api_key_id, 2, length(api_key_id) - 2) end as api_key_id,
    case when accepted then exact_cost end as cost,
    case when accepted then exact_synapses end as synapses,
    case when accepted then exact_neurons end as neurons,
    case when accepted and model != 'null' then substr(model, 2, length(model) - 2) end as model,
    case when accepted and endpoint != 'null' then substr(endpoint, 2, length(endpoint) - 2) end as endpoint,
    case when accepted then cast(status as smallint) end as status,
    case when accepted then coalesce(cast(input_tokens as bigint), 0) end as input_tokens,
    case when accepted then coalesce(cast(output_tokens as bigint), 0) end as output_tokens
from verdict
