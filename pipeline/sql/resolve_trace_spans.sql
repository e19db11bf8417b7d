-- Grain: record of a trace. Which records are no requests: agents above a call or another agent, and failed calls without a
-- response id directly below such a call.
-- Inputs: trace_span.
create or replace temp table trace_verdict as
with recursive above as (
    select parent as record
    from trace_span
    where role in ('call', 'agent') and parent is not null

    union

    select trace_span.parent
    from above
    join trace_span using (record)
    where trace_span.parent is not null
)

select
    record,
    'agent' as verdict
from trace_span
semi join above using (record)
where role = 'agent'

union

select
    child.record,
    'merged' as verdict
from trace_span as child
join trace_span as parent on child.parent = parent.record
where
    child.role = 'call'
    and parent.role = 'call'
    and child.is_failed
    and parent.is_failed
    and not child.is_named
    and not parent.is_named
