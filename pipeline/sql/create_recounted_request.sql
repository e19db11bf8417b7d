-- Grain: one accepted line of the recounted days, read a second time. Copies are still in it.
-- Days count from 1970, timestamps in microseconds; amounts in 10^-12 of the currency, 10^-6 synapses and neurons.
create or replace table recounted_request (
    day integer,
    organization_id varchar,
    request_id varchar,
    timestamp bigint,
    api_key_id varchar,
    cost bigint,
    synapses bigint,
    neurons bigint,
    model varchar,
    endpoint varchar,
    status smallint,
    input_tokens bigint,
    output_tokens bigint,
    cached_input_tokens bigint,
    cache_write_tokens bigint,
    reasoning_tokens bigint,
    currency varchar,
    most_complete boolean
)
