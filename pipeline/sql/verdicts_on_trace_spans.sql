-- Grain: record. Why some records are no requests.
-- Inputs: records (record_id), trace_verdict.
select
    record_id,
    any_value(verdict) as verdict
from records
join trace_verdict on md5_number(record_id) = trace_verdict.record
group by record_id
