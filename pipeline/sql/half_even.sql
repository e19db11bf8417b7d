-- A quotient of whole numbers that are not negative, rounded half to even. divisor: at most 10^18.
-- A decimal's division would go through a binary float. Division by 1 and in 64 bits, which nearly all are, cost next to
-- nothing; in 128 bits DuckDB divides bit by bit.
create or replace temp macro half_even(dividend, divisor) as
case
    when divisor = 1
        then dividend
    when dividend <= 9223372036854775807
        then cast(
            cast(dividend as bigint) // cast(divisor as bigint)
            + cast(
                2 * (cast(dividend as bigint) % cast(divisor as bigint))
                + (cast(dividend as bigint) // cast(divisor as bigint)) % 2 > cast(divisor as bigint)
                as bigint
            )
            as hugeint
        )
    else dividend // divisor + cast(2 * (dividend % divisor) + (dividend // divisor) % 2 > divisor as hugeint)
end
