-- One row: how many records of calls tell of a request that another record tells of; of how many calls it cannot be decided whether
-- they are the call directly above them, or the one beside them; and how many agents were left out whose tokens count nowhere.
-- Inputs: trace_span, trace_failure, trace_agent.
-- Below: a failed call below one that did not fail is an attempt of its own. Two calls that both have response ids are decided.
-- Beside: failed calls of one model with the same parent, written by different instrumentations, may be one call each or the same one.
with call as (
    select distinct
        trace_span.record,
        trace_span.parent,
        coalesce(trace_failure.request, trace_span.request) as request,
        trace_span.model,
        trace_span.scope,
        trace_span.is_named,
        trace_span.is_failed,
        coalesce(trace_failure.is_below, false) as is_below_failure
    from trace_span
    left join trace_failure on trace_span.record = trace_failure.record
    where trace_span.role = 'call'
),

below as (
    select count(*) as undecided
    from call as child
    join call as parent on child.parent = parent.record
    where
        child.request != parent.request
        and not (child.is_named and parent.is_named)
        and not child.is_failed
),

beside as (
    select coalesce(sum(calls - most), 0) as undecided
    from (
        select
            sum(calls) as calls,
            max(calls) as most
        from (
            select
                parent,
                model,
                scope,
                count(*) as calls
            from call
            where is_failed and not is_named and not is_below_failure and parent is not null
            group by
                parent,
                model,
                scope
        ) as of_scope
        group by
            parent,
            model
        having count(*) > 1
    ) as of_parent
),

below_failure as (
    select count(*) as undecided
    from trace_failure
    where is_below and top_id = failed_id
)

select
    cast((select count(distinct {'record': record, 'request': request}) - count(distinct request) from call) as bigint) as merged,
    cast(
        (select undecided from below)
        + (select undecided from beside)
        + (select undecided from below_failure) as bigint
    ) as undecided,
    (select count(*) from trace_agent where is_lost) as lost
