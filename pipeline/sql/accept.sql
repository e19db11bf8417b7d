-- The bulk read: types each line that is certainly a request; leaves any other to the second look.
-- Inputs: candidates (the format's twelve fields as JSON values), $start and $end (half-open: the days a request may be dated on), $latest (later
-- requests are from the future).
-- Every pattern is narrower than the rule it stands for (pipeline/line.py): a cast alone would take ' 1.5 ', '+5',
-- '24:00' or a thirteenth decimal. A JSON number has JSON's grammar already: it is left to say that it has no sign, no
-- exponent, few enough decimals, and at most 15 digits, so that it is the shortest decimal of its double.
-- Text from a plain block (ASCII, no escape) needs no look at its characters.
insert into judged
with amounts as (
    select
        *,
        nullif(synapses, 'null') as given_synapses,
        nullif(neurons, 'null') as given_neurons
    from candidates
),

typed as (
    select
        *,
        case
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
            when starts_with(cost, '"')
                then case
                    when regexp_full_match(cost, '"[0-9]{1,6}(?:\.[0-9]{1,12})?"')
                        then cast(substr(cost, 2, strlen(cost) - 2) as decimal(18, 12))
                    when regexp_full_match(cost, '"[0-9](?:\.[0-9]{1,13})?[eE]-(?:[0-9]|1[0-2])"')
                        and try_cast(trim(cost, '"') as decimal(38, 26)) = try_cast(trim(cost, '"') as decimal(18, 12))
                        then try_cast(trim(cost, '"') as decimal(18, 12))
                end
            when strlen(cost) > 16 or starts_with(cost, '-')
                then null
            when contains(cost, 'e')
                then case
                    when regexp_full_match(cost, '[0-9](?:\.[0-9]{1,13})?e-(?:[0-9]|1[0-2])')
                        and try_cast(cost as decimal(38, 26)) = try_cast(cost as decimal(18, 12))
                        then try_cast(cost as decimal(18, 12))
                end
            when contains(cost, '.') and strlen(cost) - strpos(cost, '.') > 12
                then null
            else try_cast(cost as decimal(18, 12))
        end as exact_cost,
        case
            when starts_with(given_synapses, '"')
                then case
                    when regexp_full_match(given_synapses, '"[0-9]{1,12}(?:\.[0-9]{1,6})?"')
                        then cast(substr(given_synapses, 2, strlen(given_synapses) - 2) as decimal(18, 6))
                end
            when strlen(given_synapses) > 16 or starts_with(given_synapses, '-')
                then null
            when contains(given_synapses, 'e')
                then null
            when contains(given_synapses, '.') and strlen(given_synapses) - strpos(given_synapses, '.') > 6
                then null
            else try_cast(given_synapses as decimal(18, 6))
        end as exact_synapses,
        case
            when starts_with(given_neurons, '"')
                then case
                    when regexp_full_match(given_neurons, '"[0-9]{1,12}(?:\.[0-9]{1,6})?"')
                        then cast(substr(given_neurons, 2, strlen(given_neurons) - 2) as decimal(18, 6))
                end
            when strlen(given_neurons) > 16 or starts_with(given_neurons, '-')
                then null
            when contains(given_neurons, 'e')
                then null
            when contains(given_neurons, '.') and strlen(given_neurons) - strpos(given_neurons, '.') > 6
                then null
            else try_cast(given_neurons as decimal(18, 6))
        end as exact_neurons
    from amounts
),

verdict as (
    select
        *,
        coalesce(
            sound
            and reason is null
            and starts_with(request_id, '"')
            and (plain or regexp_full_match(request_id, '"[ !#-\[\]-~]+"'))
            and strlen(request_id) between 3 and 130
            and instant >= $start
            and instant < $end
            and instant <= $latest
            and regexp_full_match(organization_id, '"[A-Za-z0-9_-]+"')
            and strlen(organization_id) <= 130
            and (api_key_id = 'null' or (regexp_full_match(api_key_id, '"[A-Za-z0-9_.:-]+"') and strlen(api_key_id) <= 130))
            and exact_cost is not null
            and (given_synapses is null or exact_synapses is not null)
            and (given_neurons is null or exact_neurons is not null)
            and (
                model is null
                or model = 'null'
                or (starts_with(model, '"') and (plain or not contains(model, '\')) and length(model) <= 258)
            )
            and (
                endpoint is null
                or endpoint = 'null'
                or (starts_with(endpoint, '"') and (plain or not contains(endpoint, '\')) and length(endpoint) <= 258)
            )
            and (status is null or status = 'null' or regexp_full_match(status, '[1-5][0-9][0-9]'))
            and (input_tokens is null or input_tokens = 'null' or regexp_full_match(input_tokens, '[0-9]{1,18}'))
            and (output_tokens is null or output_tokens = 'null' or regexp_full_match(output_tokens, '[0-9]{1,18}')),
            false
        ) as accepted
    from typed
)

-- A line that was not accepted leaves nothing of its text: what does not fit in memory lies on the disk for a while.
select
    line,
    reason,
    not accepted and reason is null as suspect,
    case when accepted then cast(instant as date) end as day,
    case when accepted then substr(request_id, 2, length(request_id) - 2) end as request_id,
    case when accepted then instant end as timestamp,
    case when accepted then substr(organization_id, 2, length(organization_id) - 2) end as organization_id,
    case when accepted and api_key_id != 'null' then substr(api_key_id, 2, length(api_key_id) - 2) end as api_key_id,
    case when accepted then exact_cost end as cost,
    case when accepted then coalesce(exact_synapses, 0) end as synapses,
    case when accepted then coalesce(exact_neurons, 0) end as neurons,
    case when accepted and model != 'null' then substr(model, 2, length(model) - 2) end as model,
    case when accepted and endpoint != 'null' then substr(endpoint, 2, length(endpoint) - 2) end as endpoint,
    case when accepted then try_cast(status as smallint) end as status,
    case when accepted then coalesce(try_cast(input_tokens as bigint), 0) end as input_tokens,
    case when accepted then coalesce(try_cast(output_tokens as bigint), 0) end as output_tokens
from verdict
