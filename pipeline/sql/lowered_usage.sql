-- Grain: day, organization. Whose counted requests of some published days became fewer, or are gone.
-- Inputs: published, rolled (files of api_key_day), $days (of other days the files may have rows too).
create or replace temp table lowered as
with was as (
    select
        day,
        organization_id,
        cast(sum(requests) as bigint) as requests
    from published
    where list_contains(cast($days as date[]), day)
    group by
        day,
        organization_id
),

becomes as (
    select
        day,
        organization_id,
        cast(sum(requests) as bigint) as requests
    from rolled
    where list_contains(cast($days as date[]), day)
    group by
        day,
        organization_id
)

select
    was.day,
    was.organization_id,
    was.requests as requests_before,
    coalesce(becomes.requests, 0) as requests_after
from was
left join becomes using (day, organization_id)
where coalesce(becomes.requests, 0) < was.requests
