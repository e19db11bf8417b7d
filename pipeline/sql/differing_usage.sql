-- Grain: rollup, organization, API key, model, day. Where what is published of the month $month differs from the recount.
-- Inputs: organization_day, organization_month, api_key_day, api_key_month (what is published of this month),
-- recounted_usage, compared_day, $whole: whether every day of the month is compared, and so the month; and $parts, $part:
-- of so many parts of the organizations this one, for all of them need not fit into memory.
-- A published row on a day of another month is nowhere in the recount: it differs.
with usage as (
    select
        'published' as side,
        'organization_day' as rollup,
        organization_id,
        cast(null as varchar) as api_key_id,
        cast(null as varchar) as model,
        day,
        columns('requests|cost|synapses|neurons|tokens|unpriced')
    from organization_day
    where day in (select day from compared_day) or date_trunc('month', day) != $month

    union all

    select
        'published',
        'api_key_day',
        organization_id,
        api_key_id,
        model,
        day,
        columns('requests|cost|synapses|neurons|tokens|unpriced')
    from api_key_day
    where day in (select day from compared_day) or date_trunc('month', day) != $month

    union all

    select
        'published',
        'organization_month',
        organization_id,
        null,
        null,
        null,
        columns('requests|cost|synapses|neurons|tokens|unpriced')
    from organization_month
    where $whole

    union all

    select
        'published',
        'api_key_month',
        organization_id,
        api_key_id,
        model,
        null,
        columns('requests|cost|synapses|neurons|tokens|unpriced')
    from api_key_month
    where $whole

    union all

    select
        'recounted',
        rollup,
        organization_id,
        case when starts_with(rollup, 'api_key') then api_key_id end,
        case when starts_with(rollup, 'api_key') then model end,
        case when ends_with(rollup, 'day') then day end,
        columns('requests|cost|synapses|neurons|tokens|unpriced')
    from recounted_usage
    cross join (select unnest(['organization_day', 'organization_month', 'api_key_day', 'api_key_month']) as rollup)
    where date_trunc('month', day) = $month and ($whole or ends_with(rollup, 'day'))
),

compared as (
    select
        rollup,
        organization_id,
        api_key_id,
        model,
        day,
        -- More than one published row of a grain is wrong, however right its sum: its readers expect one.
        count(*) filter (where side = 'published') as published_rows,
        cast(bool_or(side = 'recounted') as bigint) as recounted_rows,
        cast(coalesce(sum(requests) filter (where side = 'published'), 0) as bigint) as published_requests,
        cast(coalesce(sum(requests) filter (where side = 'recounted'), 0) as bigint) as recounted_requests,
        cast(coalesce(sum(failed_requests) filter (where side = 'published'), 0) as bigint) as published_failed,
        cast(coalesce(sum(failed_requests) filter (where side = 'recounted'), 0) as bigint) as recounted_failed,
        cast(coalesce(sum(cost) filter (where side = 'published'), 0) as decimal(38, 12)) as published_cost,
        cast(coalesce(sum(cost) filter (where side = 'recounted'), 0) as decimal(38, 12)) as recounted_cost,
        cast(coalesce(sum(synapses) filter (where side = 'published'), 0) as decimal(38, 6)) as published_synapses,
        cast(coalesce(sum(synapses) filter (where side = 'recounted'), 0) as decimal(38, 6)) as recounted_synapses,
        cast(coalesce(sum(neurons) filter (where side = 'published'), 0) as decimal(38, 6)) as published_neurons,
        cast(coalesce(sum(neurons) filter (where side = 'recounted'), 0) as decimal(38, 6)) as recounted_neurons,
        cast(coalesce(sum(input_tokens) filter (where side = 'published'), 0) as decimal(38, 0)) as published_input,
        cast(coalesce(sum(input_tokens) filter (where side = 'recounted'), 0) as decimal(38, 0)) as recounted_input,
        cast(coalesce(sum(output_tokens) filter (where side = 'published'), 0) as decimal(38, 0)) as published_output,
        cast(coalesce(sum(output_tokens) filter (where side = 'recounted'), 0) as decimal(38, 0)) as recounted_output,
        cast(coalesce(sum(unpriced) filter (where side = 'published'), 0) as bigint) as published_unpriced,
        cast(coalesce(sum(unpriced) filter (where side = 'recounted'), 0) as bigint) as recounted_unpriced
    from usage
    where hash(organization_id) % cast($parts as ubigint) = $part
    group by
        rollup,
        organization_id,
        api_key_id,
        model,
        day
)

select *
from compared
where
    published_rows != recounted_rows
    or published_requests != recounted_requests
    or published_failed != recounted_failed
    or published_cost != recounted_cost
    or published_synapses != recounted_synapses
    or published_neurons != recounted_neurons
    or published_input != recounted_input
    or published_output != recounted_output
    or published_unpriced != recounted_unpriced
order by
    starts_with(rollup, 'api_key'),
    rollup,
    day,
    organization_id,
    api_key_id,
    model nulls first
