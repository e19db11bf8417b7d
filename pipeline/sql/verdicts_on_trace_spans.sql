-- Grain: record of a trace that waited, if it is no request of its own: either an agent that is left out (request_id is null), or a
-- failed call, with the id of the request that it tells of.
-- Inputs: records (record_id), trace_agent, trace_failure.
select distinct
    record_id,
    trace_failure.request_id
from records
left join trace_agent on md5_number(record_id) = trace_agent.record
left join trace_failure on md5_number(record_id) = trace_failure.record and trace_failure.request_id != record_id
where trace_agent.record is not null or trace_failure.record is not null
