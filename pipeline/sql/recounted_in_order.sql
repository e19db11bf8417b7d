-- Grain: one accepted line. Copies of a request stand together, the one that counts first.
-- Inputs: recounted_request.
-- Sorted, and nothing else: a sort keeps on the disk what memory does not hold. The reader walks along it once.
select *
from recounted_request
order by
    day,
    organization_id,
    request_id,
    timestamp,
    api_key_id nulls first,
    cost,
    synapses,
    neurons,
    model nulls first,
    endpoint nulls first,
    status nulls first,
    input_tokens,
    output_tokens
