-- Grain: organization. Whose usage of the day $day changed, in any measure of any key and model; its sums before, after.
-- Inputs: published, rolled (files of api_key_day), $known (false: what was published cannot be read any more).
create or replace temp table changed as
with was as (
    select *
    from published
    where day = $day
),

becomes as (
    select *
    from rolled
    where day = $day
),

differing as (
    (select * from was except all select * from becomes)
    union all
    (select * from becomes except all select * from was)
),

organization as (
    select
        organization_id,
        cast(count(distinct api_key_id) as bigint) as keys_changed
    from differing
    group by organization_id
),

sides as (
    select true as before, * from was
    union all
    select false as before, * from becomes
)

select
    organization_id,
    case when $known then any_value(keys_changed) end as keys_changed,
    case when $known then cast(coalesce(sum(requests) filter (where before), 0) as bigint) end as requests_before,
    cast(coalesce(sum(requests) filter (where not before), 0) as bigint) as requests_after,
    case when $known then cast(coalesce(sum(failed_requests) filter (where before), 0) as bigint) end as failed_requests_before,
    cast(coalesce(sum(failed_requests) filter (where not before), 0) as bigint) as failed_requests_after,
    case when $known then cast(coalesce(sum(cost) filter (where before), 0) as decimal(38, 12)) end as cost_before,
    cast(coalesce(sum(cost) filter (where not before), 0) as decimal(38, 12)) as cost_after,
    case when $known then cast(coalesce(sum(synapses) filter (where before), 0) as decimal(38, 6)) end as synapses_before,
    cast(coalesce(sum(synapses) filter (where not before), 0) as decimal(38, 6)) as synapses_after,
    case when $known then cast(coalesce(sum(neurons) filter (where before), 0) as decimal(38, 6)) end as neurons_before,
    cast(coalesce(sum(neurons) filter (where not before), 0) as decimal(38, 6)) as neurons_after,
    case when $known then cast(coalesce(sum(input_tokens) filter (where before), 0) as decimal(38, 0)) end as input_tokens_before,
    cast(coalesce(sum(input_tokens) filter (where not before), 0) as decimal(38, 0)) as input_tokens_after,
    case when $known then cast(coalesce(sum(output_tokens) filter (where before), 0) as decimal(38, 0)) end as output_tokens_before,
    cast(coalesce(sum(output_tokens) filter (where not before), 0) as decimal(38, 0)) as output_tokens_after,
    case when $known then cast(coalesce(sum(unpriced) filter (where before), 0) as bigint) end as unpriced_before,
    cast(coalesce(sum(unpriced) filter (where not before), 0) as bigint) as unpriced_after
from organization
join sides using (organization_id)
group by organization_id
