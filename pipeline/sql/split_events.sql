-- Some of a day's events, each with the number of its bucket: all copies of a request are in one.
-- Inputs: some_event_files, $buckets.
select
    *,
    hash(organization_id, request_id) % $buckets as bucket
from some_event_files
