-- Every line of one raw file, judged. Rejected: a reason. Accepted: neither that nor suspect. A suspect line stands
-- once more, as what the second look made of it, unless it was blank. No text: lines may be as long as they like.
create or replace table judged (
    line bigint,
    reason varchar,
    suspect boolean,
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
