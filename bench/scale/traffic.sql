-- Grain: one line of a raw log, as JSON. All of it is made up from the line's number on its day.
-- Inputs: $day, $first, $end (numbers of lines, half-open), $on_day (lines of the whole day), $organizations.
-- Every 33rd line is a copy of one before it, by up to 33,000 lines; one line of 10,000 is no request. Every other line comes from any
-- organization alike, the rest from few of them: the largest sends some 3 % of all.
with line as (
    select
        range as number,
        case
            when number % 33 = 32
                then number - 1 - 33 * (hash(number) % least(number // 33 + 1, 1000))
            else number
        end as original
    from range($first, $end)
),

mixed as (
    select
        original,
        hash(original, $day) as mixed
    from line
),

-- A hash of the same with another number beside it is no other chance: the numbers are mixed in before.
chance as (
    select
        original,
        cast(hash(xor(mixed, 1)) >> 32 as double) / 4294967296 as of_organization,
        cast(hash(xor(mixed, 2)) >> 32 as double) / 4294967296 as of_key,
        cast(hash(xor(mixed, 3)) >> 32 as double) / 4294967296 as of_model,
        hash(xor(mixed, 4)) as amount,
        hash(xor(mixed, 5)) as id
    from mixed
),

request as (
    select
        *,
        case
            when original % 2 = 0 then cast(floor(of_organization * $organizations) as bigint)
            else cast(floor(pow($organizations, of_organization)) as bigint) - 1
        end as organization
    from chance
)

select
    concat(
        '{"request_id":"req_', hex(id), '","timestamp":"', $day, 'T',
        strftime(
            timestamp '2000-01-01' + to_microseconds(cast(floor(86400000000.0 * original / $on_day) as bigint)),
            '%H:%M:%S.%gZ'
        ),
        '","organization_id":"org_', lpad(cast(organization as varchar), 8, '0'),
        '","api_key_id":',
        case
            when amount % 100 < 8 then 'null'
            else concat(
                '"key_', lpad(cast(organization as varchar), 8, '0'), '_', cast(floor(4 * of_key * of_key) as tinyint), '"'
            )
        end,
        ',"cost":',
        case
            when original % 10000 = 17 then '"n/a"'
            when original % 2 = 0 then concat('0.', lpad(cast(amount % 100000 as varchar), 6, '0'))
            else concat('"0.', lpad(cast(amount % 100000000 as varchar), 9, '0'), '"')
        end,
        ',"synapses":', cast(amount % 9000 as varchar),
        ',"neurons":', cast(amount % 700 as varchar), '.', cast(amount % 10 as varchar),
        ',"model":"model-', cast((organization + cast(floor(3 * of_model) as bigint)) % 12 as varchar),
        '","endpoint":"/v1/chat/completions","status":', case when amount % 25 = 0 then '429' else '200' end,
        ',"input_tokens":', cast(amount % 4000 as varchar),
        ',"output_tokens":', cast(amount % 900 as varchar), '}'
    ) as line
from request
