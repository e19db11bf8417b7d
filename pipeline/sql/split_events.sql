-- Some of a day's events, each with the number of its bucket: all copies of a request are in one.
-- Inputs: some_event_files, with the numbers of rows in their files; $first and $end of these; $buckets.
-- Row groups of other numbers are not read. More at once would all wait in memory, or spilled, to be written by bucket.
select
    * exclude (file_row_number),
    hash(organization_id, request_id) % $buckets as bucket
from some_event_files
where file_row_number >= $first
    and file_row_number < $end
