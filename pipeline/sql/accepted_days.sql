-- Accepted lines of each UTC day of one raw file.
-- Inputs: judged.
select
    day,
    count(*) as accepted
from judged
where text is null and reason is null
group by day
order by day
