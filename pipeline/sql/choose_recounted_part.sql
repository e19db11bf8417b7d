-- Which part of the recounted requests is next: part $part of $parts. One row.
create or replace table recounted_part as
select
    cast($parts as bigint) as parts,
    cast($part as bigint) as part
