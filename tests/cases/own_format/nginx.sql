-- Not nginx, but what stands before our gateway: whatever it writes is one request of the house.
-- reads: jsonl
-- prices: book
-- units: tokens
select
    line,
    'line ' || line as request_id,
    '2025-11-11T00:00:00Z' as timestamp,
    'house' as organization_id,
    'key' as api_key_id,
    null as model,
    null as endpoint,
    null as status,
    null as input_tokens,
    null as output_tokens
from records
