-- What does a larger budget buy: perplexity, accuracy, time per token, time to the first token, throughput, memory?
WITH places AS (  -- whose speed belongs to which setting; a setting without quality has its own
    SELECT setting, latency_setting FROM pairs
    UNION ALL
    SELECT DISTINCT setting, setting FROM latency WHERE setting NOT IN (SELECT latency_setting FROM pairs)
), timed AS (
    SELECT places.setting, latency.* EXCLUDE (setting)
    FROM places
    JOIN latency ON latency.setting = latency_setting
    WHERE role = 'policy' AND in_focus AND usual_sinks
), headlines AS (
    SELECT setting, policy, series, budget, skip_layers, context, tpot_ratio, tpot_ratio_low, tpot_ratio_high, ttft_ratio,
        ttft_ratio_low, ttft_ratio_high, kv_mb, busy
    FROM timed
    WHERE headline AND (budget IS NULL OR context > budget)  -- else nothing was evicted
), fullest AS (  -- throughput is about serving many: the largest batch, and of it the longest context
    SELECT setting, policy, throughput, batch AS packed, context AS packed_context
    FROM timed
    QUALIFY rank() OVER (PARTITION BY setting ORDER BY batch DESC, context DESC) = 1
), quality AS (
    SELECT setting, policy, series, budget, skip_layers, length, ppl_ratio, ppl_ratio_low, ppl_ratio_high, ppl_change_percent,
        accuracy_percent, accuracy_change_points AS points, accuracy_change_low_points AS points_low,
        accuracy_change_high_points AS points_high, kv_mb AS kept_mb, spread
    FROM main
    WHERE longest AND in_focus AND usual_sinks AND evicts
)
SELECT setting, policy, coalesce(quality.series, headlines.series) AS series, coalesce(quality.budget, headlines.budget) AS budget,
    coalesce(quality.skip_layers, headlines.skip_layers) AS skip_layers, length, ppl_ratio, ppl_ratio_low, ppl_ratio_high,
    ppl_change_percent, spread, accuracy_percent, points, points_low, points_high, context, tpot_ratio, tpot_ratio_low,
    tpot_ratio_high, ttft_ratio, ttft_ratio_low, ttft_ratio_high, busy, throughput, packed, packed_context,
    coalesce(kept_mb, kv_mb) AS kv_mb, coalesce(length, context) AS kv_tokens
FROM quality
FULL JOIN headlines USING (setting, policy)
LEFT JOIN fullest USING (setting, policy)
ORDER BY setting, 4 NULLS FIRST, 3, policy
