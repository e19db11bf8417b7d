-- Grain: day. How many organizations have fewer counted requests, and how many these organizations had and have.
-- Inputs: lowered.
select
    day,
    count(*) as organizations,
    cast(sum(requests_before) as bigint) as requests_before,
    cast(sum(requests_after) as bigint) as requests_after
from lowered
group by day
order by day
