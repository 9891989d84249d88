-- Which policy should be taken: the smallest budget within the tolerance, the best at the smallest budget, with or without sinks?
WITH candidates AS (
    SELECT *, row_number() OVER (PARTITION BY setting, budget ORDER BY cost, policy) AS place,
        count(*) OVER (PARTITION BY setting, budget) = 1 AS alone
    FROM costs
    WHERE longest AND in_focus AND budget IS NOT NULL AND evicts AND cost IS NOT NULL AND kv_mb IS NOT NULL
), within AS (
    SELECT * FROM candidates
    WHERE cost <= getvariable('within')
    QUALIFY row_number() OVER (PARTITION BY setting ORDER BY budget, cost, policy) = 1
), closest AS (
    SELECT * FROM candidates QUALIFY row_number() OVER (PARTITION BY setting ORDER BY cost, budget, policy) = 1
), tried AS (
    SELECT setting, min(budget) AS smallest_budget, min(paired_documents) AS fewest_documents,
        max(paired_documents) AS most_documents
    FROM candidates
    GROUP BY setting
), tight AS (
    SELECT * FROM candidates WHERE place = 1 QUALIFY row_number() OVER (PARTITION BY setting ORDER BY budget) = 1
), with_sinks AS (
    SELECT * FROM candidates WHERE start_size > 0 AND recent_size IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY setting, budget ORDER BY cost, policy) = 1
), sinks AS (
    SELECT with_sinks.setting, with_sinks.budget, with_sinks.policy AS sinks_policy, with_sinks.cost AS sinks_cost,
        without.policy AS bare_policy, without.cost AS bare_cost
    FROM with_sinks
    JOIN candidates AS without ON without.setting = with_sinks.setting AND without.budget = with_sinks.budget
        AND without.start_size = 0 AND without.recent_size IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY with_sinks.setting ORDER BY with_sinks.budget, without.policy_name) = 1
), modes AS (
    SELECT setting, min(variant) FILTER (in_focus AND budget IS NOT NULL) AS focus,
        count(*) FILTER (NOT in_focus AND budget IS NOT NULL AND evicts AND every IS NULL) AS in_other_modes
    FROM costs
    WHERE longest
    GROUP BY setting
)
SELECT setting,
    within.policy IS NOT NULL AS qualifies,
    getvariable('within') AS tolerance,
    pick.policy, pick.budget, pick.budget = smallest_budget AS smallest_tried, full_ppl, vocab_size, guesses, pick.start_size, pick.recent_size, pick.policy_fields,
    pick.skip_layers, pick.metric, pick.cost, pick.cost_low, pick.cost_high, pick.spread,
    pick.kv_percent, pick.length, pick.trained_context, pick.paired_documents,
    fewest_documents, most_documents,
    tight.policy AS tight_policy, tight.alone AS tight_alone, tight.budget AS tight_budget, tight.cost AS tight_cost,
    tight.kv_percent AS tight_kv_percent, tight.skip_layers AS tight_skip_layers,
    sinks.budget AS sinks_budget, sinks_policy, sinks_cost,
    bare_policy, bare_cost, focus, in_other_modes
FROM closest
LEFT JOIN within USING (setting)
JOIN candidates AS pick ON pick.setting = closest.setting AND pick.policy = coalesce(within.policy, closest.policy)
JOIN tried ON tried.setting = closest.setting
JOIN guessing ON guessing.setting = closest.setting
JOIN modes ON modes.setting = closest.setting
LEFT JOIN tight ON tight.setting = closest.setting
LEFT JOIN sinks ON sinks.setting = closest.setting
ORDER BY setting
