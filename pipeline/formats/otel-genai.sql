-- Model calls as OpenTelemetry writes them: OTLP as JSON, an export of many spans a line.
-- producer: OpenTelemetry SDK 1.45.2 with opentelemetry-exporter-otlp-json-file 0.66b1, GenAI semantic conventions
-- reads: jsonl
-- prices: book
-- units: tokens
-- copies: most complete
-- rounds: nothing; nanoseconds are cut to microseconds
-- skips: spans that call no model, such as HTTP and tools, and agents whose model calls are in the log too
-- The organization and the key are attributes that you add to your spans or to their resource. If both have one, the span's counts.
-- If your attributes have other names: copy this file to formats/ of the data folder, and change the two names in the first block.
-- Instrumentations of different years name the same token count differently. For each count, the list below has the newest name
-- first, and the first name in this list that the span has counts. The names of OpenInference (llm.token_count) come last.
-- The Vercel AI SDK's ai.usage is not read: the span that has it alone repeats the tokens of the span below it.
-- A record is read only if everything above its spans has the shape that OTLP gives it: lists are lists, objects are objects,
-- and a null stands for an empty one. Any other record, and one with the instrumentationLibrarySpans of OTLP before 2022, gives no row.
-- Only a record with a gap, where a list is null or a part is no object, is looked at more closely: that takes longer and more memory.
with export as not materialized (
    select
        line,
        record,
        'keytally.organization_id' as organization_name,
        'keytally.api_key_id' as api_key_name,
        from_json(
            record,
            '{"resourceSpans": [{
                "resource": "JSON",
                "instrumentationLibrarySpans": "JSON",
                "scopeSpans": [{
                    "scope": "JSON",
                    "spans": [{
                        "traceId": "VARCHAR",
                        "spanId": "VARCHAR",
                        "parentSpanId": "VARCHAR",
                        "startTimeUnixNano": "VARCHAR",
                        "status": "JSON",
                        "attributes": "JSON"
                    }]
                }]
            }]}'
        ).resourceSpans as resources,
        list_bool_or(list_transform(
            resources,
            lambda exported: exported.scopeSpans is null
            or exported.instrumentationLibrarySpans is not null
            or not (
                coalesce(exported.resource, 'null') = 'null'
                or coalesce(json_type(exported.resource, '$.attributes'), left(exported.resource, 1)) in ('ARRAY', 'NULL', '{')
            )
            or coalesce(list_bool_or(list_transform(
                exported.scopeSpans,
                lambda scoped: scoped.spans is null
                or not (coalesce(scoped.scope, 'null') = 'null' or starts_with(scoped.scope, '{'))
            )), false)
        )) as has_gap,
        resources is not null
        and case
            when has_gap then list_has_all(['OBJECT'], json_type(record, '$.resourceSpans[*]'))
                and list_has_all(['OBJECT'], json_type(record, '$.resourceSpans[*].scopeSpans[*]'))
                and list_has_all(['OBJECT', 'NULL'], json_type(record, '$.resourceSpans[*].resource'))
                and list_has_all(['OBJECT', 'NULL'], json_type(record, '$.resourceSpans[*].scopeSpans[*].scope'))
                and list_has_all(['ARRAY', 'NULL'], json_type(record, '$.resourceSpans[*].resource.attributes'))
                and list_has_all(['ARRAY', 'NULL'], json_type(record, '$.resourceSpans[*].scopeSpans'))
                and list_has_all(['ARRAY', 'NULL'], json_type(record, '$.resourceSpans[*].scopeSpans[*].spans'))
                and list_has_all(['NULL'], json_type(record, '$.resourceSpans[*].instrumentationLibrarySpans'))
            else true
        end as is_otlp
    from records
),

-- Not a filter: before a filter, DuckDB would read each record twice.
resource as (
    select
        line,
        organization_name,
        api_key_name,
        unnest(case when is_otlp then resources end) as exported
    from export
),

scope as (
    select
        line,
        organization_name,
        api_key_name,
        list_filter(
            from_json(exported.resource->'$.attributes', '[{"key": "VARCHAR", "value": "JSON"}]'),
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
        scoped.scope->>'$.name' as scope_name,
        unnest(scoped.spans) as given
    from scope
),

-- The attributes that this format reads: those of the span, and behind them those of its resource.
chosen as (
    select
        line,
        scope_name,
        organization_name,
        api_key_name,
        given.traceId as trace_id,
        given.spanId as span_id,
        given.parentSpanId as parent_span_id,
        given.startTimeUnixNano as start_time,
        given.status as outcome,
        given.attributes as own_attributes,
        list_filter(
            list_concat(from_json(given.attributes, '[{"key": "VARCHAR", "value": "JSON"}]'), resource_attributes),
            lambda attribute: starts_with(attribute.key, 'gen_ai.usage.')
            or starts_with(attribute.key, 'llm.usage.')
            or starts_with(attribute.key, 'llm.token_count.')
            or starts_with(attribute.key, 'ai.usage.')
            or attribute.key in (
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
                'llm.model_name',
                'llm.provider',
                'llm.request.type',
                'openinference.span.kind'
            )
        ) as attributes
    from span
),

-- Each value as text. It is wrapped or bare: {"intValue": "500"}, {"intValue": 500}, {"doubleValue": 500.0}, 500.
-- A value that holds only nulls ({}, {"stringValue": null}) is missing. An empty text is missing too, except in a token count.
-- A double belongs in a token count or an HTTP status only. If it is a whole number there, it becomes its digits.
-- A value of another kind than its field needs stays as its JSON, so that the field's rule refuses it.
-- The two spellings that SDKs write come first: to take any other value apart takes longer.
read as (
    select
        * exclude (attributes),
        list_filter(
            list_transform(
                attributes,
                lambda attribute: {
                    'name': attribute.key,
                    'text': case
                        when regexp_full_match(attribute.value, '\{"stringValue":"[^"\\]*"\}')
                            then attribute.value[17:-3]
                        when regexp_full_match(attribute.value, '\{"intValue":"?-?[0-9]+"?\}')
                            then regexp_extract(attribute.value, '-?[0-9]+')
                        when regexp_full_match(attribute.value, '\{(?:,?"(?:[^"\\]|\\.)*":null)*\}') then null
                        else list_transform(
                            [{
                                'exact': coalesce(
                                    nullif(attribute.value->'$.stringValue', 'null'),
                                    nullif(attribute.value->'$.intValue', 'null')
                                ),
                                'other': coalesce(nullif(attribute.value->'$.doubleValue', 'null'), attribute.value)
                            }],
                            lambda content: case
                                when regexp_matches(coalesce(content.exact, content.other), '^("|-?[0-9]+$)')
                                    and (
                                        content.exact is not null
                                        or not regexp_matches(attribute.key, '^((gen_ai|llm)\.usage|llm\.token_count|http)\.')
                                    )
                                    then coalesce(content.exact, content.other)->>'$'
                                when not regexp_matches(attribute.key, '^((gen_ai|llm)\.usage|llm\.token_count|http)\.')
                                    then case
                                        when regexp_matches(attribute.value, '^[0-9-]')
                                            then '{"doubleValue":' || attribute.value || '}'
                                        else cast(attribute.value as varchar)
                                    end
                                when regexp_matches(content.exact, '^[0-9-]') then cast(content.exact as varchar)
                                when content.exact is null and regexp_matches(content.other, '^["0-9-]')
                                    then list_transform(
                                        [regexp_extract(
                                            content.other->>'$',
                                            '^(-?(?:0|[1-9][0-9]*))(?:\.(?:0+|([0-9]*[1-9])0*))?(?:[eE]\+?([0-9]{1,2}))?$',
                                            ['whole', 'fraction', 'exponent']
                                        )],
                                        lambda number: case
                                            when number.whole != ''
                                                and cast('0' || number.exponent as integer) >= len(number.fraction)
                                                then rpad(
                                                    number.whole || number.fraction,
                                                    cast(len(number.whole) as integer) + cast('0' || number.exponent as integer),
                                                    '0'
                                                )
                                            else content.other->>'$'
                                        end
                                    )[1]
                                else cast(attribute.value as varchar)
                            end
                        )[1]
                    end
                }
            ),
            lambda attribute: attribute.text is not null
            and (attribute.text != '' or regexp_matches(attribute.name, '^((gen_ai|llm)\.usage|llm\.token_count)\.'))
        ) as texts,
        list_transform(texts, lambda attribute: attribute.name) as names,
        list_transform(texts, lambda attribute: attribute.text) as contents
    from chosen
),

-- Where the tokens have several names, the newest name is first. Of a repeated name, the first attribute counts.
named as (
    select
        line,
        scope_name,
        nullif(trace_id, '') as trace_id,
        nullif(span_id, '') as span_id,
        nullif(parent_span_id, '') as parent_span_id,
        nullif(start_time, '') as start_time,
        outcome,
        own_attributes,
        names,
        contents[list_position(names, organization_name)] as organization_id,
        contents[list_position(names, api_key_name)] as api_key_id,
        contents[list_position(names, 'error.type')] as error_type,
        coalesce(
            contents[list_position(names, 'gen_ai.operation.name')], contents[list_position(names, 'openinference.span.kind')]
        ) as operation,
        contents[list_position(names, 'llm.request.type')] as request_type,
        coalesce(
            contents[list_position(names, 'gen_ai.request.model')], contents[list_position(names, 'llm.model_name')]
        ) as requested_model,
        contents[list_position(names, 'gen_ai.response.model')] as deployed_model,
        contents[list_position(names, 'gen_ai.response.id')] as response_id,
        coalesce(
            contents[list_position(names, 'gen_ai.provider.name')],
            contents[list_position(names, 'gen_ai.system')],
            contents[list_position(names, 'llm.provider')]
        ) as provider,
        coalesce(contents[list_position(names, 'http.response.status_code')], contents[list_position(names, 'http.status_code')]) as http_status,
        coalesce(
            contents[list_position(names, 'gen_ai.usage.input_tokens')],
            contents[list_position(names, 'gen_ai.usage.prompt_tokens')],
            contents[list_position(names, 'llm.usage.prompt_tokens')],
            contents[list_position(names, 'llm.token_count.prompt')]
        ) as input_tokens,
        coalesce(
            contents[list_position(names, 'gen_ai.usage.output_tokens')],
            contents[list_position(names, 'gen_ai.usage.completion_tokens')],
            contents[list_position(names, 'llm.usage.completion_tokens')],
            contents[list_position(names, 'llm.token_count.completion')]
        ) as output_tokens,
        coalesce(
            contents[list_position(names, 'gen_ai.usage.cache_read.input_tokens')],
            contents[list_position(names, 'gen_ai.usage.cache_read_input_tokens')],
            contents[list_position(names, 'gen_ai.usage.cached_input_tokens')],
            contents[list_position(names, 'gen_ai.usage.cache_read_tokens')],
            contents[list_position(names, 'gen_ai.usage.cached_tokens')],
            contents[list_position(names, 'gen_ai.usage.input_cached_tokens')],
            contents[list_position(names, 'gen_ai.usage.input_tokens.cached')],
            contents[list_position(names, 'gen_ai.usage.input_tokens_details.cached_tokens')],
            contents[list_position(names, 'gen_ai.usage.prompt_tokens_details.cached_tokens')],
            contents[list_position(names, 'gen_ai.usage.prompt_tokens_details.cache_read')],
            contents[list_position(names, 'gen_ai.usage.details.cache_read_tokens')],
            contents[list_position(names, 'llm.token_count.prompt_details.cache_read')]
        ) as cached_input_tokens,
        coalesce(
            contents[list_position(names, 'gen_ai.usage.cache_creation.input_tokens')],
            contents[list_position(names, 'gen_ai.usage.cache_write.input_tokens')],
            contents[list_position(names, 'gen_ai.usage.cache_creation_input_tokens')],
            contents[list_position(names, 'gen_ai.usage.cache_write_input_tokens')],
            contents[list_position(names, 'gen_ai.usage.input_tokens.cache_write')],
            contents[list_position(names, 'gen_ai.usage.prompt_tokens_details.cache_write')],
            contents[list_position(names, 'gen_ai.usage.details.cache_write_tokens')],
            contents[list_position(names, 'llm.token_count.prompt_details.cache_write')]
        ) as cache_write_tokens,
        coalesce(
            contents[list_position(names, 'gen_ai.usage.reasoning.output_tokens')],
            contents[list_position(names, 'gen_ai.usage.reasoning_tokens')],
            contents[list_position(names, 'gen_ai.usage.output_tokens.reasoning')],
            contents[list_position(names, 'gen_ai.usage.output_tokens_details.reasoning_tokens')],
            contents[list_position(names, 'gen_ai.usage.completion_tokens_details.reasoning_tokens')],
            contents[list_position(names, 'gen_ai.usage.completion_tokens_details.reasoning')],
            contents[list_position(names, 'gen_ai.usage.details.reasoning_tokens')],
            contents[list_position(names, 'llm.token_count.completion_details.reasoning')]
        ) as reasoning_tokens,
        coalesce(
            len(list_filter(
                names,
                lambda name: starts_with(name, 'gen_ai.usage.')
                or starts_with(name, 'llm.usage.')
                or starts_with(name, 'llm.token_count.')
            )),
            0
        ) > 0 as has_usage
    from read
),

-- What of the span has another kind than OTLP gives it. The record is refused for it: its status says what was found.
checked as (
    select
        *,
        outcome->>'$.code' as code,
        case
            when not starts_with(own_attributes, '[') then '{"attributes":' || own_attributes || '}'
            when not starts_with(outcome, '{')
                or code not in ('0', '1', '2', '0.0', '1.0', '2.0', 'STATUS_CODE_UNSET', 'STATUS_CODE_OK', 'STATUS_CODE_ERROR')
                then '{"status":' || outcome || '}'
            when regexp_matches(
                concat_ws(chr(10), trace_id, span_id, parent_span_id, operation, request_type, response_id, error_type),
                '(?m)^(\{|\[|true$|false$)'
            )
                then list_filter(
                    [trace_id, span_id, parent_span_id, coalesce(operation, request_type), response_id, error_type],
                    lambda text: regexp_matches(text, '^(\{|\[|true$|false$)') and json_valid(text)
                )[1]
        end as odd_part
    from named
),

-- An older instrumentation names no operation: a request type or a token count shows the call of a model.
-- OpenInference names the kind of a span instead: 'LLM', 'EMBEDDING', 'AGENT'.
judged as (
    select
        *,
        case
            when lower(coalesce(operation, request_type)) in ('embeddings', 'embedding') then 'embedding'
            when operation is null and (request_type is not null or has_usage) then 'call'
            when lower(operation) in (
                'chat',
                'text_completion',
                'generate_content',
                'chat.completions',
                'text.completions',
                'completion',
                'acompletion',
                'messages',
                'responses',
                'llm'
            )
                then 'call'
            when lower(operation) in ('invoke_agent', 'create_agent', 'agent') and has_usage then 'agent'
        end as role,
        error_type is not null or coalesce(code in ('2', '2.0', 'STATUS_CODE_ERROR'), false) as failed,
        coalesce(trace_id, span_id, start_time) is null as is_no_span
    from checked
),

-- The spans of one call share the trace and the id of the response. A span without a response has its own id.
call as (
    select
        line,
        trace_id || '-' || coalesce(response_id, span_id) as request_id,
        case
            when regexp_full_match(start_time, '[0-9]{1,19}')
                then coalesce(
                    strftime(make_timestamp(try_cast(start_time as bigint) // 1000), '%Y-%m-%dT%H:%M:%S.%fZ'),
                    start_time
                )
            else start_time
        end as timestamp,
        organization_id,
        api_key_id,
        null as synapses,
        null as neurons,
        coalesce(requested_model, deployed_model) as model,
        deployed_model,
        provider,
        coalesce(operation, request_type) as endpoint,
        case
            when odd_part is not null then odd_part
            when not failed then http_status
            when http_status is null or regexp_full_match(http_status, '0*[0-3]?[0-9]{1,2}')
                then case when regexp_full_match(error_type, '[45][0-9]{2}') then error_type else '500' end
            else http_status
        end as status,
        input_tokens,
        output_tokens,
        cached_input_tokens,
        cache_write_tokens,
        reasoning_tokens,
        case
            when role is not null or is_no_span or odd_part is not null then null
            when has_usage or len(list_filter(names, lambda name: starts_with(name, 'ai.usage.'))) > 0
                then coalesce(left(operation, 64), 'ai.usage (Vercel)') || ' with tokens'
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
    from export
    where
        not contains(record, '"spanId"')
        and is_otlp
        and coalesce(list_sum(json_array_length(record, '$.resourceSpans[*].scopeSpans[*].spans')), 0) = 0
)

select * from call
union all by name
select
    line,
    'an export without spans' as skipped
from export_without_spans
