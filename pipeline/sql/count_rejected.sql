-- How many lines of one raw file were rejected.
-- Inputs: judged.
select count(*) as rejected
from judged
where reason is not null
