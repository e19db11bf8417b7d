-- Grain: day, organization, version. A month's restatements so far, and those by this run.
-- Inputs: restatements_so_far, restated.
select *
from restated
union all by name
select *
from restatements_so_far
order by
    organization_id,
    day,
    version
