-- Grain: organization, day, API key, model. What the recount makes of the raw contents, each request once.
-- A row may come in several, one for each part of the requests that was walked along.
create or replace table recounted_usage (
    organization_id varchar,
    day date,
    api_key_id varchar,
    model varchar,
    requests bigint,
    failed_requests bigint,
    cost decimal(38, 12),
    synapses decimal(38, 6),
    neurons decimal(38, 6),
    input_tokens decimal(38, 0),
    output_tokens decimal(38, 0),
    unpriced bigint
)
