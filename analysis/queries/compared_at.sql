-- At which length are policies compared first of all: the longest that most of them reach beside full?
-- So one longer run of a few leaves what all have in the answer and the charts.
WITH runs AS (
    SELECT setting, policy, policy_name, document, max(tokens) AS tokens FROM cells GROUP BY ALL
), reached AS (
    SELECT runs.setting, policy, max(least(runs.tokens, coalesce(full_cache.tokens, runs.tokens))) AS tokens
    FROM runs
    LEFT JOIN (SELECT setting, document, tokens FROM runs WHERE policy_name = 'full') AS full_cache USING (setting, document)
    WHERE policy_name <> 'full'
    GROUP BY ALL
), asked AS (
    SELECT DISTINCT setting, unnest(lengths) AS length FROM cells
), counted AS (
    SELECT setting, length, 2 * count(*) FILTER (tokens >= length) > count(policy) AS most
    FROM asked
    LEFT JOIN reached USING (setting)
    GROUP BY ALL
)
SELECT setting, coalesce(max(length) FILTER (most), max(length)) AS compared_at
FROM counted
GROUP BY setting
