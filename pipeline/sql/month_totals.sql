-- What each rollup of a month sums to: four rows that must be equal but for their name.
-- Inputs: organization_day, organization_month, api_key_day, api_key_month (the files about to be published).
with measured as (
    select 'organization_day' as rollup, columns('requests|cost|synapses|neurons|tokens|unpriced') from organization_day
    union all
    select 'organization_month', columns('requests|cost|synapses|neurons|tokens|unpriced') from organization_month
    union all
    select 'api_key_day', columns('requests|cost|synapses|neurons|tokens|unpriced') from api_key_day
    union all
    select 'api_key_month', columns('requests|cost|synapses|neurons|tokens|unpriced') from api_key_month
),

rollup_name as (
    select unnest(['organization_day', 'organization_month', 'api_key_day', 'api_key_month']) as rollup
)

select
    rollup_name.rollup,
    cast(coalesce(sum(requests), 0) as bigint) as requests,
    cast(coalesce(sum(failed_requests), 0) as bigint) as failed_requests,
    cast(coalesce(sum(cost), 0) as decimal(38, 12)) as cost,
    cast(coalesce(sum(synapses), 0) as decimal(38, 6)) as synapses,
    cast(coalesce(sum(neurons), 0) as decimal(38, 6)) as neurons,
    cast(coalesce(sum(input_tokens), 0) as decimal(38, 0)) as input_tokens,
    cast(coalesce(sum(output_tokens), 0) as decimal(38, 0)) as output_tokens,
    cast(coalesce(sum(unpriced), 0) as bigint) as unpriced
from rollup_name
left join measured using (rollup)
group by rollup_name.rollup
order by rollup_name.rollup
