-- As in_128_bits, where no number is larger than 64 bits hold: DuckDB divides those in one step.
create or replace temp macro whole(number) as cast(number as bigint);

create or replace temp macro in_range(number) as number;

create or replace temp macro rounded(dividend, divisor) as
dividend // divisor + cast(2 * (dividend % divisor) + (dividend // divisor) % 2 > divisor as bigint);
