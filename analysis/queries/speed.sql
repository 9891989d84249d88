-- How fast is the recommended policy, or, of a model without quality, the fastest one?
WITH picks AS (
    SELECT setting, latency_setting, policy, true AS has_quality FROM answer JOIN pairs USING (setting)
    UNION ALL
    SELECT setting, setting, policy, false
    FROM latency
    WHERE headline AND role = 'policy' AND policy_name <> 'full' AND in_focus
        AND setting NOT IN (SELECT latency_setting FROM pairs)
    QUALIFY row_number() OVER (PARTITION BY setting ORDER BY filled DESC, coalesce(tpot_verdict = 'faster', false) DESC, tpot_ratio, policy) = 1
), contexts AS (
    SELECT latency.setting, latency.policy, count(tpot_verdict) AS contexts,
        count(*) FILTER (busy IS NOT NULL AND tpot_verdict IS NULL) AS contexts_unsure,
        count(*) FILTER (tpot_verdict <> 'faster') AS contexts_not_faster
    FROM latency
    WHERE role = 'policy' AND smallest_batch AND filled AND budget IS NOT NULL
    GROUP BY ALL
)
SELECT picks.*,
    (SELECT count(DISTINCT other.setting) > 1 FROM latency AS other
        WHERE (other.model, other.device, other.dtype) = (latency.model, latency.device, latency.dtype)) AS several_settings,
    (SELECT min(cells.setting) FROM cells
        WHERE (cells.model, cells.device, cells.dtype) = (latency.model, latency.device, latency.dtype)) AS quality_setting,
    latency.context, latency.batch, latency.budget, latency.filled, latency.full_after, tpot_ratio, tpot_ratio_low, tpot_ratio_high, tpot_verdict,
    100 * latency.kv_mb / full_cache.kv_mb AS kv_percent, latency.skip_layers, latency.busy, rounds_n, contexts, contexts_unsure, contexts_not_faster,
    again_tpot_ratio, again_tpot_low, again_tpot_high,
    (SELECT list(policy ORDER BY other.tpot_ratio, policy) FROM latency AS other
        WHERE other.cell = latency.cell AND role = 'policy' AND in_focus AND other.policy <> latency.policy
            AND policy_name <> 'full' AND other.filled
            AND other.tpot_ratio_low <= latency.tpot_ratio_high) AS tied
FROM picks
JOIN latency ON latency.setting = latency_setting AND latency.policy = picks.policy AND latency.headline AND role = 'policy'
JOIN noise USING (cell)
JOIN (SELECT cell, kv_mb FROM latency WHERE contender = 'full') AS full_cache USING (cell)
LEFT JOIN contexts ON contexts.setting = latency_setting AND contexts.policy = picks.policy
ORDER BY picks.setting
