-- Model calls as OpenTelemetry writes them: OTLP as JSON, an export of many spans a line.
-- producer: OpenTelemetry SDK 1.45.2 with opentelemetry-exporter-otlp-json-file 0.66b1, GenAI semantic conventions
-- reads: jsonl
-- prices: book
-- units: tokens
-- rounds: nothing; nanoseconds are cut to microseconds
-- skips: spans that call no model, as those of HTTP, tools and agents: an agent's repeat the tokens of the calls below it
-- Organization and key are attributes of your own: of the span or, where it has none, of its resource. Called otherwise?
-- Copy this file to formats/ of the data folder, and change the two names in the first block.
with exported as (
    select
        line,
        'keytally.organization_id' as organization_name,
        'keytally.api_key_id' as api_key_name,
        unnest(json_extract(record, '$.resourceSpans[*]')) as exported
    from records
),

-- Materialized: else every span would carry all others of its export along.
resource as materialized (
    select
        line,
        organization_name,
        api_key_name,
        exported->'$.resource' as resource,
        json_extract(exported, '$.scopeSpans[*].spans[*]') as spans
    from exported
),

span as (
    select
        line,
        organization_name,
        api_key_name,
        resource,
        unnest(spans) as span
    from resource
),

named as (
    select
        *,
        json_extract_string(resource, '$.attributes[*].key') as resource_names,
        json_extract(resource, '$.attributes[*]') as resource_attributes,
        json_extract_string(span, '$.attributes[*].key') as names,
        json_extract(span, '$.attributes[*]') as attributes
    from span
),

call as (
    select
        line,
        span->>'traceId' as trace_id,
        span->>'spanId' as span_id,
        span->>'startTimeUnixNano' as start_time,
        span->>'$.status.code' as outcome,
        coalesce(
            attributes[list_position(names, organization_name)]->>'$.value.stringValue',
            resource_attributes[list_position(resource_names, organization_name)]->>'$.value.stringValue'
        ) as organization_id,
        coalesce(
            attributes[list_position(names, api_key_name)]->>'$.value.stringValue',
            resource_attributes[list_position(resource_names, api_key_name)]->>'$.value.stringValue'
        ) as api_key_id,
        attributes[list_position(names, 'gen_ai.operation.name')]->>'$.value.stringValue' as operation,
        attributes[list_position(names, 'gen_ai.request.model')]->>'$.value.stringValue' as model,
        attributes[list_position(names, 'gen_ai.usage.input_tokens')]->>'$.value.intValue' as input_tokens,
        attributes[list_position(names, 'gen_ai.usage.output_tokens')]->>'$.value.intValue' as output_tokens,
        attributes[list_position(names, 'gen_ai.usage.cache_read.input_tokens')]->>'$.value.intValue' as cached_input_tokens,
        attributes[list_position(names, 'http.response.status_code')]->>'$.value.intValue' as http_status,
        attributes[list_position(names, 'error.type')]->>'$.value.stringValue' as error_type
    from named
)

-- The names of two ids make one: a span's is unique within its trace. The operation stands for the path.
-- An error whose HTTP status nobody wrote down is a 500, so that it counts as failed.
select
    line,
    trace_id || '-' || span_id as request_id,
    coalesce(
        strftime(make_timestamp(try_cast(start_time as bigint) // 1000), '%Y-%m-%dT%H:%M:%S.%fZ'),
        start_time
    ) as timestamp,
    organization_id,
    api_key_id,
    null as synapses,
    null as neurons,
    model,
    operation as endpoint,
    case
        when http_status is not null then http_status
        when regexp_full_match(error_type, '[1-5][0-9]{2}') then error_type
        when error_type is not null or outcome in ('2', 'STATUS_CODE_ERROR') then '500'
    end as status,
    input_tokens,
    output_tokens,
    cached_input_tokens
from call
where operation in ('chat', 'text_completion', 'generate_content', 'embeddings')
