-- One row: how many records of calls tell of a request that another record tells of; of how many calls it cannot be decided whether
-- they are the nearest call above them, or the one beside them; and how many agents were left out whose tokens do not all count.
-- Inputs: trace_span, trace_failure, trace_agent.
-- Below: other spans may stand between the two. A failed call below one that did not fail is an attempt of its own. Two calls that
-- both have response ids are decided.
-- Beside: calls of one model with the same parent, written by different instrumentations, may be one call each or the same one. If
-- they did not fail, they have the same numbers of tokens. Each call without a response id may be one of the others, no more.
with recursive call as (
    select distinct
        trace_span.record,
        trace_span.parent,
        coalesce(trace_failure.request, trace_span.request) as request,
        trace_span.model,
        trace_span.scope,
        trace_span.is_named,
        trace_span.is_failed,
        trace_span.input_tokens,
        trace_span.output_tokens,
        coalesce(trace_failure.is_below, false) as is_below_failure
    from trace_span
    left join trace_failure on trace_span.record = trace_failure.record
    where trace_span.role = 'call'
),

-- Grain: record and the nearest call at it or above it.
under as (
    select
        record as call,
        record
    from call

    union

    select
        under.call,
        child.record
    from under
    join trace_span as child on under.record = child.parent
    where child.role is distinct from 'call'
),

below as (
    select count(*) as undecided
    from call as child
    join under on child.parent = under.record
    join call as outer_call on under.call = outer_call.record
    where
        child.request != outer_call.request
        and not (child.is_named and outer_call.is_named)
        and not child.is_failed
),

beside as (
    select coalesce(sum(least(calls - most, unnamed)), 0) as undecided
    from (
        select
            sum(calls) as calls,
            max(calls) as most,
            sum(unnamed) as unnamed
        from (
            select
                parent,
                model,
                is_failed,
                case when not is_failed then {'input': input_tokens, 'output': output_tokens} end as tokens,
                scope,
                count(distinct request) as calls,
                count(distinct request) filter (not is_named) as unnamed
            from call
            where parent is not null and not is_below_failure
            group by all
        ) as of_scope
        group by
            parent,
            model,
            is_failed,
            tokens
    ) as of_parent
),

below_failure as (
    select count(*) as undecided
    from trace_failure
    where is_undecided
)

select
    cast((select count(distinct {'record': record, 'request': request}) - count(distinct request) from call) as bigint) as merged,
    cast(
        (select undecided from below)
        + (select undecided from beside)
        + (select undecided from below_failure) as bigint
    ) as undecided,
    (select count(*) from trace_agent where is_lost) as lost
