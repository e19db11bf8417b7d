-- The log of LiteLLM's proxy: a StandardLoggingPayload a line.
-- producer: LiteLLM proxy 1.106.2 to 1.110.2
-- reads: jsonl, parquet
-- currency: USD
-- prices: record
-- units: tokens
-- copies: most complete
-- rounds: startTime to microseconds and response_cost to 12 decimals, half-even: both are binary floats
-- A key without an organization counts for its team. Another field is to count? Copy this file to formats/ of the data folder,
-- and change the word user_api_key_team_id in the first block.
-- LiteLLM writes a rejected key into user_api_key_hash as the client sent it: a value other than 64 hex digits is hashed here.
-- An error code that is no HTTP status of an error, such as 'context_length_exceeded', becomes 500: the request failed.
-- A value without the shape that its field needs is passed on as it is, and the rule of its field refuses the value. A key that is no
-- text is passed on as '[]': a list or an object may hold a key in clear.
with field as (
    select
        line,
        json_extract_string(record, [
            '$.litellm_call_id',
            '$.id',
            '$.call_type',
            '$.startTime',
            '$.metadata.user_api_key_org_id',
            '$.metadata.user_api_key_team_id',
            '$.metadata.user_api_key_hash',
            '$.response_cost',
            '$.model_group',
            '$.model',
            '$.custom_llm_provider',
            '$.metadata.user_api_key_request_route',
            '$.status',
            '$.error_information.error_code',
            '$.prompt_tokens',
            '$.completion_tokens',
            '$.metadata.usage_object.prompt_tokens_details.cached_tokens',
            '$.metadata.usage_object.cache_read_input_tokens',
            '$.metadata.usage_object.prompt_tokens_details.cache_creation_tokens',
            '$.metadata.usage_object.prompt_tokens_details.cache_write_tokens',
            '$.metadata.usage_object.cache_creation_input_tokens',
            '$.metadata.usage_object.completion_tokens_details.reasoning_tokens',
            '$.model_id'
        ]) as value
    from records
),

named as (
    select
        line,
        nullif(value[1], '') as call_id,
        nullif(value[2], '') as object_id,
        regexp_full_match(
            value[3],
            '(?s)(CallTypes\.)?_?a?((get|retrieve|list|cancel|delete|update)(_.+)?'
            || '|(batch|file|video|vector_store|vector_store_file)_(get|retrieve|status|list|content|cancel|delete|update)(_.+)?)'
        ) as is_look,
        nullif(value[4], '') as start_time,
        coalesce(nullif(value[5], ''), nullif(value[6], '')) as organization_id,
        nullif(value[7], '') as api_key,
        value[8] as response_cost,
        nullif(value[9], '') as model_group,
        nullif(value[10], '') as deployed_model,
        nullif(value[11], '') as provider,
        nullif(value[12], '') as endpoint,
        value[13] as outcome,
        value[14] as error_code,
        value[15] as input_tokens,
        value[16] as output_tokens,
        value[17:18] as cached,
        value[19:21] as written,
        value[22] as reasoning_tokens,
        value[23] as model_id
    from field
)

-- Clients may choose the id of a call, and servers may repeat the id of an answer: the two together identify a request.
-- A look at an object that another call made (a poll of a batch or of a video, a response fetched again) has the id of that
-- object, so that many looks count once.
-- Some releases write model_id, the hash of a deployment, as the model_group of a call that names no model (a response fetched again).
-- The same number of tokens may have several places. The greatest number counts, since older releases leave one of them at 0.
select
    line,
    case
        when is_look then coalesce(object_id, call_id)
        when not is_text(call_id) then call_id
        when not is_text(object_id) then object_id
        else coalesce(call_id || '/' || object_id, call_id, object_id)
    end as request_id,
    coalesce(
        strftime(
            make_timestamp(cast(round_even(try_cast(number_text(start_time) as decimal(28, 16)) * 1000000, 0) as bigint)),
            '%Y-%m-%dT%H:%M:%S.%fZ'
        ),
        start_time
    ) as timestamp,
    organization_id,
    case
        when regexp_full_match(api_key, '[0-9a-fA-F]{64}') then api_key
        when not is_text(api_key) then '[]'
        else 'sha256:' || sha256(api_key)
    end as api_key_id,
    rounded_cost(response_cost) as cost,
    null as synapses,
    null as neurons,
    coalesce(case when model_group is distinct from model_id then model_group end, deployed_model, model_group) as model,
    deployed_model,
    provider,
    endpoint,
    case
        when outcome = 'success' then '200'
        when regexp_full_match(error_code, '[45][0-9]{2}') then error_code
        else '500'
    end as status,
    input_tokens,
    output_tokens,
    coalesce(
        list_filter(cached, lambda tokens: not regexp_full_match(tokens, '[0-9]{1,38}'))[1],
        cast(list_max(try_cast(cached as hugeint[])) as varchar)
    ) as cached_input_tokens,
    coalesce(
        list_filter(written, lambda tokens: not regexp_full_match(tokens, '[0-9]{1,38}'))[1],
        cast(list_max(try_cast(written as hugeint[])) as varchar)
    ) as cache_write_tokens,
    reasoning_tokens
from named
