-- One row: how many spans of failed calls tell of a call that the span directly above them tells of.
-- Inputs: trace_verdict. A span that was exported twice is one.
select count(*) as merged
from trace_verdict
where verdict = 'merged'
