-- Grain: line. The hashes of one bucket, with the part each stands in.
-- Inputs: identity_hashes (of all parts, those of the bucket).
-- They are held: to open the files of many parts takes longer than to read them.
create or replace table line_of_bucket as
select
    part,
    identity_hash
from identity_hashes
