-- Which variant of the positions, which number of sinks and share of recents do the figures of a setting show?
WITH runs AS (
    SELECT DISTINCT setting, policies.*
    FROM (SELECT cell, policy FROM commits UNION SELECT cell, policy FROM contenders)
    JOIN settings USING (cell)
    JOIN policies USING (policy)
), sampled_runs AS (  -- windows run anew are no policies, and stand in the table of all results alone
    SELECT DISTINCT policy FROM commits WHERE every IS NOT NULL
), ranked AS (
    SELECT setting, variant,
        row_number() OVER (PARTITION BY setting ORDER BY count(*) DESC, variant <> 'cache', variant) AS place
    FROM runs
    WHERE policy_name <> 'full' AND policy NOT IN (FROM sampled_runs)
    GROUP BY setting, variant
), sinks AS (  -- of each method the number nearest to four, which is StreamingLLM's own
    SELECT setting, policy_name, arg_min(sinks, abs(sinks - 4)) AS usual
    FROM (SELECT setting, policy_name, sinks FROM runs WHERE sinks IS NOT NULL ORDER BY ALL)
    GROUP BY setting, policy_name
), recents AS (  -- and of those with contested tokens between both ends, the share nearest to half the budget
    SELECT setting, policy_name, budget, arg_min(recent_share, abs(recent_share - 0.5)) AS usual
    FROM (SELECT setting, policy_name, budget, recent_share FROM runs WHERE recent_share IS NOT NULL ORDER BY ALL)
    GROUP BY setting, policy_name, budget
)
SELECT setting, policy,
    policy_name = 'full' OR (ranked.place = 1 AND policy NOT IN (FROM sampled_runs)) AS in_focus,
    coalesce(runs.sinks = sinks.usual, true) AND coalesce(runs.recent_share = recents.usual, true) AS usual_ends
FROM runs
LEFT JOIN ranked USING (setting, variant)
LEFT JOIN sinks USING (setting, policy_name)
LEFT JOIN recents USING (setting, policy_name, budget)
