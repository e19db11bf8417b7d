-- Grain: organization, raw file. The organizations with fewer requests on the day $day; for each the raw files that held
-- requests of it that are gone; a null file where no file is known to have held any. The first $most of them, and how
-- many there are.
-- Inputs: lowered, lost_request, source (artifact, raw file), $day, $most.
with held as (
    select distinct
        organization_id,
        file
    from lost_request
    join source using (artifact)
)

select
    organization_id,
    requests_before,
    requests_after,
    file,
    count(*) over () as of_all
from lowered
left join held using (organization_id)
where day = $day
order by
    organization_id,
    file
limit $most
