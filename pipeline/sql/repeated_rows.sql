-- How many rows of each rollup repeat another row's grain: four rows that must say none.
-- Inputs: organization_day, organization_month, api_key_day, api_key_month (the files about to be published).
select
    'organization_day' as rollup,
    (select count(*) from organization_day)
    - (select count(*) from (select distinct organization_id, day from organization_day)) as repeated
union all
select
    'organization_month',
    (select count(*) from organization_month)
    - (select count(*) from (select distinct organization_id from organization_month))
union all
select
    'api_key_day',
    (select count(*) from api_key_day)
    - (select count(*) from (select distinct organization_id, day, api_key_id, model from api_key_day))
union all
select
    'api_key_month',
    (select count(*) from api_key_month)
    - (select count(*) from (select distinct organization_id, api_key_id, model from api_key_month))
