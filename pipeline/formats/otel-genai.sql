-- Model calls as OpenTelemetry writes them: OTLP as JSON, an export of many spans a line.
-- producer: OpenTelemetry SDK 1.45.2 with opentelemetry-exporter-otlp-json-file 0.66b1, GenAI semantic conventions
-- reads: jsonl
-- prices: book
-- units: tokens
-- copies: most complete
-- rounds: nothing; nanoseconds are cut to microseconds
-- skips: spans that call no model, such as HTTP and tools, and agents whose model calls are in the log too
-- The organization and the key are attributes of your own. The span's attribute counts. A span without it has its resource's.
-- Your attributes have other names? Copy this file to formats/ of the data folder, and change the two names in the first block.
-- An instrumentation keeps the names of its time, so tokens have several names. The first name that a span has counts.
with export as (
    select
        line,
        'keytally.organization_id' as organization_name,
        'keytally.api_key_id' as api_key_name,
        from_json(
            record,
            '{"resourceSpans": [{
                "resource": {"attributes": [{"key": "VARCHAR", "value": "JSON"}]},
                "scopeSpans": [{
                    "scope": {"name": "VARCHAR"},
                    "spans": [{
                        "traceId": "VARCHAR",
                        "spanId": "VARCHAR",
                        "parentSpanId": "VARCHAR",
                        "startTimeUnixNano": "VARCHAR",
                        "status": {"code": "VARCHAR"},
                        "attributes": [{"key": "VARCHAR", "value": "JSON"}]
                    }]
                }]
            }]}'
        ).resourceSpans as resources
    from records
),

resource as (
    select
        line,
        organization_name,
        api_key_name,
        unnest(resources) as exported
    from export
),

scope as (
    select
        line,
        organization_name,
        api_key_name,
        list_filter(
            exported.resource.attributes,
            lambda attribute: attribute.key in (organization_name, api_key_name)
        ) as resource_attributes,
        unnest(exported.scopeSpans) as scoped
    from resource
),

span as (
    select
        line,
        organization_name,
        api_key_name,
        resource_attributes,
        scoped.scope.name as scope_name,
        unnest(scoped.spans) as given
    from scope
),

-- The attributes that count, those of the span before those of its resource. An attribute without a value is missing.
-- An empty text is missing too, unless it stands for a number of tokens.
chosen as (
    select
        line,
        organization_name,
        api_key_name,
        scope_name,
        given.traceId as trace_id,
        given.spanId as span_id,
        given.parentSpanId as parent_span_id,
        given.startTimeUnixNano as start_time,
        given.status.code as outcome,
        list_filter(
            list_concat(given.attributes, resource_attributes),
            lambda attribute: not regexp_full_match(attribute.value, '\{("[A-Za-z]+":null)?\}') and (
                regexp_matches(attribute.key, '^(gen_ai|llm)\.usage\.')
                or attribute.value not in ('""', '{"stringValue":""}') and attribute.key in (
                    organization_name,
                    api_key_name,
                    'error.type',
                    'gen_ai.operation.name',
                    'gen_ai.provider.name',
                    'gen_ai.request.model',
                    'gen_ai.response.id',
                    'gen_ai.response.model',
                    'gen_ai.system',
                    'http.response.status_code',
                    'http.status_code',
                    'llm.request.type'
                )
            )
        ) as attributes
    from span
),

-- A value is text or a number: {"intValue": "500"}, {"intValue": 500}, {"doubleValue": 500.0} or the bare 500.
-- A double that is a whole number is written in digits. A value of another kind stays as its JSON, which its field refuses.
read as (
    select
        * exclude (attributes),
        list_transform(attributes, lambda attribute: attribute.key) as names,
        list_transform(
            list_transform(
                attributes,
                lambda attribute: {
                    'exact': coalesce(attribute.value->>'$.stringValue', attribute.value->>'$.intValue'),
                    'number': coalesce(attribute.value->>'$.doubleValue', attribute.value->>'$')
                }
            ),
            lambda content: coalesce(
                content.exact,
                case
                    when try_cast(content.number as double) = trunc(try_cast(content.number as double))
                        then cast(try_cast(content.number as hugeint) as varchar)
                end,
                content.number
            )
        ) as contents
    from chosen
),

-- Where the tokens have several names, the newest name is first.
named as (
    select
        line,
        scope_name,
        nullif(trace_id, '') as trace_id,
        nullif(span_id, '') as span_id,
        nullif(parent_span_id, '') as parent_span_id,
        nullif(start_time, '') as start_time,
        outcome,
        contents[list_position(names, organization_name)] as organization_id,
        contents[list_position(names, api_key_name)] as api_key_id,
        contents[list_position(names, 'error.type')] as error_type,
        contents[list_position(names, 'gen_ai.operation.name')] as operation,
        contents[list_position(names, 'llm.request.type')] as request_type,
        contents[list_position(names, 'gen_ai.request.model')] as requested_model,
        contents[list_position(names, 'gen_ai.response.model')] as deployed_model,
        contents[list_position(names, 'gen_ai.response.id')] as response_id,
        coalesce(
            contents[list_position(names, 'gen_ai.provider.name')],
            contents[list_position(names, 'gen_ai.system')]
        ) as provider,
        coalesce(
            contents[list_position(names, 'http.response.status_code')],
            contents[list_position(names, 'http.status_code')]
        ) as http_status,
        coalesce(
            contents[list_position(names, 'gen_ai.usage.input_tokens')],
            contents[list_position(names, 'gen_ai.usage.prompt_tokens')],
            contents[list_position(names, 'llm.usage.prompt_tokens')]
        ) as input_tokens,
        coalesce(
            contents[list_position(names, 'gen_ai.usage.output_tokens')],
            contents[list_position(names, 'gen_ai.usage.completion_tokens')],
            contents[list_position(names, 'llm.usage.completion_tokens')]
        ) as output_tokens,
        coalesce(
            contents[list_position(names, 'gen_ai.usage.cache_read.input_tokens')],
            contents[list_position(names, 'gen_ai.usage.cache_read_input_tokens')],
            contents[list_position(names, 'gen_ai.usage.cached_input_tokens')]
        ) as cached_input_tokens,
        coalesce(
            contents[list_position(names, 'gen_ai.usage.cache_creation.input_tokens')],
            contents[list_position(names, 'gen_ai.usage.cache_write.input_tokens')],
            contents[list_position(names, 'gen_ai.usage.cache_creation_input_tokens')],
            contents[list_position(names, 'gen_ai.usage.cache_write_input_tokens')]
        ) as cache_write_tokens,
        coalesce(
            contents[list_position(names, 'gen_ai.usage.reasoning.output_tokens')],
            contents[list_position(names, 'gen_ai.usage.reasoning_tokens')]
        ) as reasoning_tokens,
        coalesce(len(list_filter(names, lambda name: regexp_matches(name, '^(gen_ai|llm)\.usage\.'))), 0) > 0 as has_usage
    from read
),

-- An older instrumentation names no operation: a request type or a token count shows the call of a model.
judged as (
    select
        *,
        case
            when operation in ('chat', 'text_completion', 'generate_content', 'embeddings') then 'call'
            when operation is null and (request_type is not null or has_usage) then 'call'
            when operation in ('invoke_agent', 'create_agent') and has_usage then 'agent'
        end as role,
        error_type is not null or coalesce(outcome in ('2', 'STATUS_CODE_ERROR'), false) as failed,
        coalesce(trace_id, span_id, start_time) is null as is_no_span
    from named
),

-- The spans of one call share the trace and the id of the response. A span without a response has its own id.
call as (
    select
        line,
        trace_id || '-' || coalesce(response_id, span_id) as request_id,
        coalesce(
            strftime(make_timestamp(try_cast(start_time as bigint) // 1000), '%Y-%m-%dT%H:%M:%S.%fZ'),
            start_time
        ) as timestamp,
        organization_id,
        api_key_id,
        null as synapses,
        null as neurons,
        coalesce(requested_model, deployed_model) as model,
        deployed_model,
        provider,
        coalesce(operation, request_type) as endpoint,
        case
            when not failed then http_status
            when http_status is null or regexp_full_match(http_status, '[0-3]?[0-9]{1,2}')
                then case when regexp_full_match(error_type, '[45][0-9]{2}') then error_type else '500' end
            else http_status
        end as status,
        input_tokens,
        output_tokens,
        cached_input_tokens,
        cache_write_tokens,
        reasoning_tokens,
        case
            when role is not null or is_no_span then null
            when has_usage then left(operation, 64) || ' with tokens'
            else 'no model call'
        end as skipped,
        trace_id || '-' || span_id as record_id,
        trace_id || '-' || parent_span_id as parent_id,
        role,
        scope_name as scope
    from judged
),

export_without_spans as (
    select line
    from (
        select
            line,
            from_json(record, '{"resourceSpans": [{"scopeSpans": [{"spans": ["JSON"]}]}]}').resourceSpans as resources
        from records
        where not contains(record, '"spanId"')
    )
    where
        resources is not null
        and coalesce(list_sum(list_transform(
            resources,
            lambda exported: list_sum(list_transform(exported.scopeSpans, lambda scoped: len(scoped.spans)))
        )), 0) = 0
)

select * from call
union all by name
select
    line,
    'an export without spans' as skipped
from export_without_spans
