-- Grain: line. The events of a part whose hash occurs more than once on the day, in order of the hash.
-- Inputs: events (of the part), repeated_hashes (of the part, in all buckets).
select
    * exclude (file_row_number),
    hash(organization_id, request_id) as identity_hash
from events
where hash(organization_id, request_id) in (select identity_hash from repeated_hashes)
order by identity_hash
