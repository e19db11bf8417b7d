-- The log of LiteLLM's proxy: a StandardLoggingPayload a line.
-- producer: LiteLLM proxy 1.106.2
-- reads: jsonl, parquet
-- currency: USD
-- prices: record
-- units: tokens
-- rounds: startTime to microseconds and response_cost to 12 decimals, half-even: both are binary floats
-- A rejected key stands in user_api_key_hash as it was sent: what is not 64 hex digits is hashed here.
-- An error's code that is no status, as 'context_length_exceeded', is 500: the request failed.
-- A value that is no number is passed on as it is, to be refused by its own rule and not taken for a missing one.
with field as (
    select
        line,
        json_extract_string(record, [
            '$.id',
            '$.startTime',
            '$.metadata.user_api_key_org_id',
            '$.metadata.user_api_key_hash',
            '$.response_cost',
            '$.model_group',
            '$.metadata.user_api_key_request_route',
            '$.status',
            '$.error_information.error_code',
            '$.prompt_tokens',
            '$.completion_tokens',
            '$.metadata.usage_object.prompt_tokens_details.cached_tokens'
        ]) as value
    from records
),

named as (
    select
        line,
        value[1] as request_id,
        value[2] as start_time,
        value[3] as organization_id,
        value[4] as api_key,
        value[5] as response_cost,
        value[6] as model,
        value[7] as endpoint,
        value[8] as outcome,
        value[9] as error_code,
        value[10] as input_tokens,
        value[11] as output_tokens,
        value[12] as cached_input_tokens
    from field
)

select
    line,
    request_id,
    coalesce(
        strftime(
            make_timestamp(cast(round_even(try_cast(start_time as decimal(28, 16)) * 1000000, 0) as bigint)),
            '%Y-%m-%dT%H:%M:%S.%fZ'
        ),
        start_time
    ) as timestamp,
    organization_id,
    case
        when regexp_full_match(api_key, '[0-9a-fA-F]{64}') then api_key
        else 'sha256:' || sha256(api_key)
    end as api_key_id,
    coalesce(
        cast(round_even(try_cast(response_cost as decimal(38, 30)), 12) as varchar),
        response_cost
    ) as cost,
    null as synapses,
    null as neurons,
    nullif(model, '') as model,
    nullif(endpoint, '') as endpoint,
    case
        when outcome = 'success' then '200'
        when regexp_full_match(error_code, '[1-5][0-9]{2}') then error_code
        else '500'
    end as status,
    input_tokens,
    output_tokens,
    cached_input_tokens
from named
