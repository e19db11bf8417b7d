-- How a request's cost is reckoned, whatever its size. Inputs: half_even.
-- in_range: what is beyond 128 bits is beyond what a request may cost, and null.
create or replace temp macro whole(number) as cast(number as hugeint);

create or replace temp macro in_range(number) as try(number);

create or replace temp macro rounded(dividend, divisor) as half_even(dividend, divisor);
