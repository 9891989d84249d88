-- What does each policy cost in quality for what it saves in KV memory or time per token, and which does no other beat?
WITH timed AS (
    SELECT pairs.setting, policy, context, batch, tpot_ms, tpot_ratio, tpot_ratio_low, tpot_ratio_high, tpot_verdict,
        tpot_band_low, tpot_band_high, busy
    FROM pairs
    JOIN (SELECT * RENAME (setting AS latency_setting) FROM latency) AS latency USING (latency_setting)
    WHERE headline AND role = 'policy' AND filled
), policies AS (
    SELECT costs.*, timed.* EXCLUDE (setting, policy)
    FROM costs
    LEFT JOIN timed USING (setting, policy)
    WHERE longest AND in_focus AND evicts AND cost IS NOT NULL
), placed AS (
    -- Of full the interval is its A/A band, so that nothing within that is measurably dearer or cheaper than it.
    SELECT 'tpot' AS axis, tpot_ratio AS x, tpot_ms AS value,
        CASE WHEN policy_name = 'full' THEN tpot_band_low ELSE tpot_ratio_low END AS x_low,
        CASE WHEN policy_name = 'full' THEN tpot_band_high ELSE tpot_ratio_high END AS x_high, *
    FROM policies
    UNION ALL BY NAME
    SELECT 'kv' AS axis, kv_percent / 100 AS x, kv_mb AS value, * REPLACE (NULL AS busy) FROM policies
)
SELECT setting, axis, policy, series, budget, skip_layers, x, x_low, x_high, value, metric, cost, cost_low, cost_high, ppl_corpus, ppl_ratio, ppl_change_percent,
    ppl_change_low_percent, ppl_change_high_percent, spread, kv_percent, tpot_ratio, tpot_verdict, length, context, batch, busy,
    NOT EXISTS (  -- what is better in quality and not measurably dearer beats, and what is cheaper and not worse
        FROM placed AS other
        WHERE other.setting = placed.setting AND other.axis = placed.axis AND other.policy <> placed.policy
            AND ((other.cost < placed.cost AND coalesce(other.x_low, other.x) <= coalesce(placed.x_high, placed.x)
                * CASE placed.axis WHEN 'kv' THEN 1.02 ELSE 1 END)  -- memory so near is drawn as equal
                OR (other.cost = placed.cost AND other.x < placed.x))
    ) AS unbeaten
FROM placed
WHERE x IS NOT NULL
QUALIFY count(*) OVER (PARTITION BY setting, axis) > 1
ORDER BY setting, list_position(['kv', 'tpot'], axis), x, cost, policy
