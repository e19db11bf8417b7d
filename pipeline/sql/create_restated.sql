-- A month's restatements by this run, in the columns of the table restatement.
-- Inputs: restatements_so_far (for its columns).
create or replace temp table restated as
select *
from restatements_so_far
limit 0
