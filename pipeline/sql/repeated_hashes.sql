-- Grain: part, hash. The hashes that occur more than once, whatever parts the lines stand in, for each part where they do.
-- Inputs: identity_hashes (of all parts, those of one bucket).
select distinct
    part,
    identity_hash
from identity_hashes
where identity_hash in (select identity_hash from identity_hashes group by identity_hash having count(*) > 1)
order by part
