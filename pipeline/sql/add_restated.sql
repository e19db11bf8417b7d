-- Adds the restatements of the day $day: each organization whose usage changed, and why.
-- Inputs: changed, content_share, source (the event files that came or left: artifact, raw file, cause), $version,
-- $run_started, $always (causes that concern everybody), $otherwise and $otherwise_files (for whom no file is to blame),
-- $slice of $slices (of the organizations: what is listed of each does not leave memory while it is gathered).
-- A file that holds the same of an organization as before did not change its usage, whatever else changed in it.
insert into restated by name
with concerned as (
    select
        organization_id,
        file,
        cause
    from content_share
    join source using (artifact)
    where hash(organization_id) % $slices = $slice
    group by
        organization_id,
        file,
        cause
    having count(*) = 1 or min(fingerprint) != max(fingerprint)
),

reason as (
    select
        organization_id,
        list(distinct cause) as causes,
        min(file, 20) as files
    from concerned
    group by organization_id
)

select
    cast($day as date) as day,
    cast($version as bigint) as version,
    cast($run_started as timestamptz) as run_started,
    array_to_string(
        list_sort(list_distinct(coalesce(causes, cast($otherwise as varchar[])) || cast($always as varchar[]))), ', '
    ) as cause,
    coalesce(files, cast($otherwise_files as varchar[])) as files,
    changed.*
from changed
left join reason using (organization_id)
where hash(organization_id) % $slices = $slice
