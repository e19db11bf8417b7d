-- Grain: line. The hash of what identifies its request, in order, with the number of the part it stands in.
-- Inputs: events; $part.
select
    hash(organization_id, request_id) as identity_hash,
    cast($part as integer) as part
from events
order by identity_hash
