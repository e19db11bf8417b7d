-- Grain: day, organization. What changed between what a month published and what it will publish, on some of its days.
-- Inputs: published, rolled (two files of organization_day), $days.
select
    day,
    organization_id,
    cast(coalesce(published.requests, 0) as bigint) as requests_before,
    cast(coalesce(rolled.requests, 0) as bigint) as requests_after,
    cast(coalesce(published.cost, 0) as decimal(38, 12)) as cost_before,
    cast(coalesce(rolled.cost, 0) as decimal(38, 12)) as cost_after,
    cast(coalesce(published.synapses, 0) as decimal(38, 6)) as synapses_before,
    cast(coalesce(rolled.synapses, 0) as decimal(38, 6)) as synapses_after,
    cast(coalesce(published.neurons, 0) as decimal(38, 6)) as neurons_before,
    cast(coalesce(rolled.neurons, 0) as decimal(38, 6)) as neurons_after
from published
full join rolled using (organization_id, day)
where list_contains($days, day)
    and (
        requests_before != requests_after
        or cost_before != cost_after
        or synapses_before != synapses_after
        or neurons_before != neurons_after
    )
order by
    day,
    organization_id
