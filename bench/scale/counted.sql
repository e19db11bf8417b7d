-- One row: how many requests of a day of traffic.sql count, and their cost in 10^-9.
-- Inputs: $day, $on_day.
-- Copies are left out by their number on the day, not by looking for them, as whoever is measured has to.
with original as (
    select
        range as number,
        hash(xor(hash(range, $day), 4)) as amount
    from range($on_day)
    where range % 33 <> 32
)

select
    cast(count(*) as bigint) as requests,
    cast(
        sum(
            case
                when number % 2 = 0 then cast(amount % 100000 * 1000 as bigint)
                else cast(amount % 100000000 as bigint)
            end
        ) as bigint
    ) as cost
from original
where amount % 100 >= 8
    and number % 10000 <> 17
