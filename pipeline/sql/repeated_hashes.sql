-- Grain: part, hash. The hashes that occur more than once, whatever parts the lines stand in, for each part where they do.
-- Inputs: identity_hashes (of all parts, those of one bucket). They are held, since to open the files of many parts takes longer
-- than to read them.
with line as materialized (
    select *
    from identity_hashes
)

select distinct
    part,
    identity_hash
from line
where identity_hash in (select identity_hash from line group by identity_hash having count(*) > 1)
order by part
