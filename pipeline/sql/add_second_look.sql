-- Adds what the second look made of the suspects: requests and rejected lines.
-- Inputs: second_look (Arrow: line, reason and the columns of an event).
insert into judged by name
select
    line,
    reason,
    false as suspect,
    cast(timestamp as date) as day,
    request_id,
    timestamp,
    organization_id,
    api_key_id,
    cost,
    synapses,
    neurons,
    model,
    endpoint,
    status,
    input_tokens,
    output_tokens
from second_look
