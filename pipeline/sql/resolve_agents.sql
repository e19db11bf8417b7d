-- Grain: agent that is no request, because a call or another agent descends from it. An agent on a circle of parents descends from
-- itself only by mistake, and is a request.
-- is_lost: nothing that counts below the agent has tokens, so its own tokens count nowhere.
-- Inputs: trace_span.
create or replace temp table trace_agent as
with recursive above as (
    select parent as record
    from trace_span
    where role in ('call', 'agent') and parent is not null

    union

    select trace_span.parent
    from above
    join trace_span using (record)
    where trace_span.parent is not null
),

climbed as (
    select
        record as agent,
        parent as record
    from trace_span
    where role = 'agent' and parent is not null

    union

    select
        climbed.agent,
        trace_span.parent
    from climbed
    join trace_span using (record)
    where trace_span.parent is not null
),

left_out as (
    select distinct record
    from trace_span
    where
        role = 'agent'
        and record in (select record from above)
        and record not in (select record from climbed where agent = record)
),

above_tokens as (
    select parent as record
    from trace_span
    where
        role in ('call', 'agent')
        and has_tokens
        and parent is not null
        and record not in (select record from left_out)

    union

    select trace_span.parent
    from above_tokens
    join trace_span using (record)
    where trace_span.parent is not null
)

select
    record,
    record not in (select record from above_tokens) as is_lost
from left_out
