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
), sinks AS (  -- of each method the number nearest to four, which is StreamingLLM's own
    SELECT setting, policy_name, arg_min(sinks, abs(sinks - 4)) AS usual
    FROM (SELECT setting, policy_name, sinks FROM runs WHERE sinks IS NOT NULL ORDER BY ALL)
    GROUP BY setting, policy_name
)
SELECT setting, policy,
    policy_name = 'full' OR ranked.place = 1 AS in_focus,
    coalesce(runs.sinks = usual, true) AS usual_sinks
FROM runs
LEFT JOIN ranked USING (setting, variant)
LEFT JOIN sinks USING (setting, policy_name)
