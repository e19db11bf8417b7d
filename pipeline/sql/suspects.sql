-- The lines that the bulk read could not take, in order.
-- Inputs: judged.
select
    line,
    text
from judged
where text is not null
order by line
