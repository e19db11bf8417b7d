-- Grain: raw file. Which raw files held requests that are gone, the one with the most first.
-- Inputs: lost_request, source (artifact, raw file).
select
    file,
    count(*) as requests
from lost_request
join source using (artifact)
group by file
order by
    requests desc,
    file
