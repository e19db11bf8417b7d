-- The lines from $first to $last that the bulk read could not take, in order.
-- Inputs: judged.
select line
from judged
where suspect and line between $first and $last
order by line
