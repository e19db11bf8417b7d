-- Grain: failed call. Of which request it tells: request_id is the id of that request.
-- Inputs: trace_span.
-- A failed call directly below another one tells of the same request, unless both have response ids. Of several below the same parent
-- only the one with the smallest id does: the others may be further attempts. So the calls of one request form a chain.
-- A call with a response id keeps it. A call without one takes that of the nearest call above in its chain, else that of the first
-- below; in a chain without any, all take the id of the topmost record.
-- is_below: it is directly below another failed call, and not both have response ids. is_undecided: it counts beside that call all the same.
-- Nothing is topmost above a circle of parents: there, each record is a request. So is one whose copies disagree about what they are.
create or replace temp table trace_failure as
with recursive failure as (
    select
        record,
        any_value(parent) as parent,
        any_value(is_named) as is_named,
        any_value(failed_id) as failed_id,
        any_value(failed_request) as request_id,
        any_value(failed_organization) as organization_id
    from trace_span
    where role = 'call' and record in (select record from trace_span where failed_id is not null)
    group by record
    having
        bool_and(failed_id is not null)
        and count(distinct {'parent': parent, 'organization': failed_organization, 'request': failed_request}) = 1
),

below as (
    select
        child.record,
        child.parent,
        child.is_named,
        child.request_id,
        row_number() over (partition by child.parent order by child.failed_id) = 1 as is_same_request
    from failure as child
    join failure as parent on child.parent = parent.record
    where not (child.is_named and parent.is_named)
),

-- Downwards: `top` is the topmost record of the chain, or of its part below a call with a response id.
resolved as (
    select
        record,
        record as top,
        is_named,
        request_id
    from failure
    where is_named or record not in (select record from below where is_same_request)

    union all

    select
        below.record,
        resolved.top,
        resolved.is_named,
        resolved.request_id
    from resolved
    join below on below.parent = resolved.record
    where below.is_same_request and not below.is_named
),

-- Upwards: a chain that begins without a response id, and ends above a call that has one.
named_below as (
    select
        resolved.top,
        below.request_id
    from resolved
    join below on below.parent = resolved.record
    where below.is_same_request and below.is_named and not resolved.is_named
),

answer as (
    select
        failure.*,
        coalesce(named_below.request_id, resolved.request_id, failure.request_id) as resolved_id
    from failure
    left join resolved on failure.record = resolved.record
    left join named_below on resolved.top = named_below.top
)

select
    answer.record,
    answer.failed_id,
    answer.resolved_id as request_id,
    md5_number(concat_ws(chr(0), answer.organization_id, answer.resolved_id)) as request,
    below.record is not null as is_below,
    below.record is not null
    and (not below.is_same_request or (not answer.is_named and answer.resolved_id = answer.failed_id)) as is_undecided
from answer
left join below on answer.record = below.record
