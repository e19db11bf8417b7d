-- Grain: day. How many copies of a request do not count, and how many of them differ from the one that does.
-- Inputs: copies. They are counted where they were found, not inferred from the rest.
select
    day,
    count(*) filter (where place > 1) as duplicate,
    count(*) filter (where conflicting) as conflicting
from copies
group by day
