-- How many rows stand in one of two files of the same rollup and not in the other.
-- Inputs: published, rolled.
select count(*) as differing
from (
    (select * from published except all select * from rolled)
    union all
    (select * from rolled except all select * from published)
)
