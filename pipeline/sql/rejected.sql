-- Grain: one rejected line of one raw file.
-- Inputs: judged.
select
    line,
    reason
from judged
where reason is not null
order by line
