-- Grain: one accepted line. Copies of a request stand together, the one that counts first.
-- most_complete: whether the most complete copy of the request counts.
-- Inputs: recounted_request, recounted_part. Copies of a request are in the same part of all requests.
-- Sorted, and nothing else: the reader walks along it once. Part by part, because a sort of much more than the memory
-- holds fails for want of it, though it spills.
with part_of_requests as (
    select recounted_request.*
    from recounted_request
    cross join recounted_part
    where hash(organization_id, request_id) % parts = part
),

-- Of these, the most complete copy counts: one of their copies comes from a log that writes a request while it grows.
growing as (
    select distinct
        day,
        organization_id,
        request_id,
        true as grows
    from part_of_requests
    where most_complete
)

select part_of_requests.* replace (coalesce(grows, false) as most_complete)
from part_of_requests
left join growing using (day, organization_id, request_id)
order by
    day,
    organization_id,
    request_id,
    case when grows then output_tokens end desc nulls last,
    case when grows then input_tokens end desc nulls last,
    case when grows then cost end desc nulls last,
    timestamp,
    api_key_id nulls first,
    cost nulls first,
    synapses nulls first,
    neurons nulls first,
    model nulls first,
    endpoint nulls first,
    status nulls first,
    input_tokens nulls first,
    output_tokens nulls first,
    cached_input_tokens nulls first,
    cache_write_tokens nulls first,
    reasoning_tokens nulls first,
    currency nulls first
