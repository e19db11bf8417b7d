-- Grain: organization, API key, model. What one UTC day's requests sum to, each request once.
-- Inputs: events (one UTC day), copies. Interactive sessions are the rows without an API key.
create or replace table usage_of_day as
with request as (
    select
        organization_id,
        api_key_id,
        model,
        cost,
        synapses,
        neurons,
        status,
        input_tokens,
        output_tokens
    from events
    where hash(organization_id, request_id) not in (select distinct request_hash from copies)

    union all

    select
        organization_id,
        api_key_id,
        model,
        cost,
        synapses,
        neurons,
        status,
        input_tokens,
        output_tokens
    from copies
    where place = 1
)

select
    organization_id,
    api_key_id,
    model,
    cast(count(*) as bigint) as requests,
    cast(count(*) filter (where status >= 400) as bigint) as failed_requests,
    cast(coalesce(sum(cost), 0) as decimal(38, 12)) as cost,
    cast(coalesce(sum(synapses), 0) as decimal(38, 6)) as synapses,
    cast(coalesce(sum(neurons), 0) as decimal(38, 6)) as neurons,
    cast(sum(cast(input_tokens as hugeint)) as decimal(38, 0)) as input_tokens,
    cast(sum(cast(output_tokens as hugeint)) as decimal(38, 0)) as output_tokens
from request
group by
    organization_id,
    api_key_id,
    model
