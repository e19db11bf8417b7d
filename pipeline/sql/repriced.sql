-- Grain: organization, API key, model. Whose cost or units other prices change over some days, from what to what.
-- Inputs: published, rolled (files of api_key_day of the same days: as they are, and as they would be).
with usage as (
    select true as before, * from published
    union all
    select false as before, * from rolled
),

compared as (
    select
        organization_id,
        api_key_id,
        model,
        cast(coalesce(sum(requests) filter (where not before), 0) as bigint) as requests,
        cast(coalesce(sum(unpriced) filter (where before), 0) as bigint) as unpriced_before,
        cast(coalesce(sum(unpriced) filter (where not before), 0) as bigint) as unpriced_after,
        cast(coalesce(sum(cost) filter (where before), 0) as decimal(38, 12)) as cost_before,
        cast(coalesce(sum(cost) filter (where not before), 0) as decimal(38, 12)) as cost_after,
        cast(coalesce(sum(synapses) filter (where before), 0) as decimal(38, 6)) as synapses_before,
        cast(coalesce(sum(synapses) filter (where not before), 0) as decimal(38, 6)) as synapses_after,
        cast(coalesce(sum(neurons) filter (where before), 0) as decimal(38, 6)) as neurons_before,
        cast(coalesce(sum(neurons) filter (where not before), 0) as decimal(38, 6)) as neurons_after
    from usage
    group by
        organization_id,
        api_key_id,
        model
)

select *
from compared
where
    unpriced_before != unpriced_after
    or cost_before != cost_after
    or synapses_before != synapses_after
    or neurons_before != neurons_after
order by
    organization_id,
    api_key_id,
    model nulls first
