-- Which variant of the positions, and which number of sinks, do the figures of a setting show?
WITH runs AS (
    SELECT DISTINCT setting, policies.*
    FROM (SELECT cell, policy FROM commits UNION SELECT cell, policy FROM contenders)
    JOIN settings USING (cell)
    JOIN policies USING (policy)
), ranked AS (
    SELECT setting, variant,
        row_number() OVER (PARTITION BY setting ORDER BY count(*) DESC, variant <> 'cache', variant) AS place
    FROM runs
    WHERE policy_name <> 'full'
    GROUP BY setting, variant
), sinks AS (
    SELECT setting, arg_min(start_size, abs(start_size - 4)) AS usual_start_size
    FROM (SELECT setting, start_size FROM runs WHERE policy_name = 'streaming_llm' ORDER BY ALL)
    GROUP BY setting
)
SELECT setting, policy,
    policy_name = 'full' OR ranked.place = 1 AS in_focus,
    policy_name <> 'streaming_llm' OR start_size = usual_start_size AS usual_sinks
FROM runs
LEFT JOIN ranked USING (setting, variant)
LEFT JOIN sinks USING (setting)
