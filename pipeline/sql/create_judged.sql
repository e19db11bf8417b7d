-- Every line of one raw file, judged. Accepted: neither a text nor a reason. Rejected: a reason.
-- To be looked at a second time: a text.
create or replace table judged (
    line bigint,
    text varchar,
    reason varchar,
    day date,
    request_id varchar,
    timestamp timestamp,
    organization_id varchar,
    api_key_id varchar,
    cost decimal(18, 12),
    synapses decimal(18, 6),
    neurons decimal(18, 6),
    model varchar,
    endpoint varchar,
    status smallint,
    input_tokens bigint,
    output_tokens bigint
)
