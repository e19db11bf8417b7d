-- Grain: one accepted line. Copies of a request stand together, the one that counts first.
-- Inputs: recounted_request, recounted_part. Copies of a request are in the same part of all requests.
-- Sorted, and nothing else: the reader walks along it once. Part by part, because a sort of much more than the memory
-- holds fails for want of it, though it spills.
select recounted_request.*
from recounted_request
cross join recounted_part
where hash(organization_id, request_id) % parts = part
order by
    day,
    organization_id,
    request_id,
    timestamp,
    api_key_id nulls first,
    cost nulls first,
    synapses nulls first,
    neurons nulls first,
    model nulls first,
    endpoint nulls first,
    status nulls first,
    input_tokens,
    output_tokens,
    cached_input_tokens nulls first,
    currency nulls first
