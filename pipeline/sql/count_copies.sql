-- Grain: day. How many copies of a request do not count, how many of them differ from the one that does, and how many do in
-- a billed value, with one such request.
-- Inputs: copies. They are counted where they were found, not inferred from the rest.
select
    day,
    count(*) filter (where place > 1) as duplicate,
    count(*) filter (where conflicting) as conflicting,
    count(*) filter (where disagreeing) as disagreeing,
    min([organization_id, request_id]) filter (where disagreeing) as disagreement
from copies
group by day
