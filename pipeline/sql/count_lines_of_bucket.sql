-- How many lines a bucket has.
-- Inputs: line_of_bucket.
select count(*) as lines
from line_of_bucket
