-- Accepted lines of each UTC day of one raw file.
-- Inputs: judged.
select
    day,
    count(*) as accepted
from judged
where reason is null and not suspect
group by day
order by day
