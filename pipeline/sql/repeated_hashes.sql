-- Grain: part, hash. The hashes that occur more than once, whatever parts the lines stand in, with the lines of each part.
-- Inputs: line_of_bucket.
select
    part,
    identity_hash,
    count(*) as lines
from line_of_bucket
where identity_hash in (select identity_hash from line_of_bucket group by identity_hash having count(*) > 1)
group by
    part,
    identity_hash
order by
    part,
    identity_hash
