-- What does a request cost under each policy: first token, further tokens, throughput, eviction, memory?
WITH prefills AS (
    SELECT cell, label, count(*) AS prefills_n, 1000 * median(seconds) AS ttft_ms, median(full_ratio) AS ttft_ratio
    FROM rounds WHERE phase = 'ttft' GROUP BY ALL
), steps AS (
    SELECT cell, label, count(*) AS rounds_n, 1000 * median(seconds) AS tpot_ms, median(full_ratio) AS tpot_ratio,
        100 * (median(twin_ratio) - 1) AS eviction_percent, median(1 / seconds) AS texts_tokens_per_s
    FROM rounds WHERE phase = 'step' GROUP BY ALL
), gaps AS (
    SELECT cell, policy AS label, count(*) AS gaps_n, 1000 * median(seconds) AS itl_ms,
        CASE WHEN count(*) >= 64 THEN 1000 * quantile_cont(seconds, 0.9) END AS itl_p90_ms,
        CASE WHEN count(*) >= 662 THEN 1000 * quantile_cont(seconds, 0.99) END AS itl_p99_ms
    FROM samples WHERE phase = 'step' GROUP BY ALL
), ends AS (
    SELECT cell, label,
        max(low) FILTER (phase = 'ttft') AS ttft_ratio_low, max(high) FILTER (phase = 'ttft') AS ttft_ratio_high,
        max(verdict) FILTER (phase = 'ttft') AS ttft_verdict,
        max(low) FILTER (phase = 'step') AS tpot_ratio_low, max(high) FILTER (phase = 'step') AS tpot_ratio_high,
        max(verdict) FILTER (phase = 'step') AS tpot_verdict
    FROM differences GROUP BY ALL
), bands AS (
    SELECT cell,
        max(band_low) FILTER (phase = 'ttft') AS ttft_band_low, max(band_high) FILTER (phase = 'ttft') AS ttft_band_high,
        max(band_low) FILTER (phase = 'step') AS tpot_band_low, max(band_high) FILTER (phase = 'step') AS tpot_band_high
    FROM differences GROUP BY ALL
), evicting AS (
    SELECT cell, label, 100 * (low - 1) AS eviction_low_percent, 100 * (high - 1) AS eviction_high_percent
    FROM round_intervals WHERE phase = 'step' AND against = 'twin'
)
SELECT setting, model, device, dtype, threads, context, batch, label AS contender, role, contenders.policy,
    contenders.policy_name, contenders.skip_layers, contenders.budget, contenders.start_size,
    coalesce(context > coalesce(contenders.full_after, contenders.budget), true) AS filled,  -- the layers with a budget
    coalesce(contenders.full_after, contenders.budget) AS full_after,
    policies.policy_fields,
    CASE WHEN role = 'policy' THEN series ELSE label END AS series, variant, in_focus, usual_ends,
    ttft_ms, ttft_ratio, ttft_ratio_low, ttft_ratio_high, ttft_verdict, ttft_band_low, ttft_band_high,
    tpot_ms, tpot_ratio, tpot_ratio_low, tpot_ratio_high, tpot_verdict, tpot_band_low, tpot_band_high,
    itl_ms, itl_p90_ms, itl_p99_ms, batch * texts_tokens_per_s AS throughput,
    eviction_percent, eviction_low_percent, eviction_high_percent,
    kv_bytes / 1e6 AS kv_mb, kv_bytes_allocated / 1e6 AS allocated_mb, peak_bytes / 1e6 AS peak_mb,
    prefills_n, rounds_n, gaps_n, busy, smallest_batch, headline, cell
FROM noise
JOIN contenders USING (cell)
JOIN policies USING (policy)
JOIN focus USING (setting, policy)
LEFT JOIN prefills USING (cell, label)
LEFT JOIN steps USING (cell, label)
LEFT JOIN gaps USING (cell, label)
LEFT JOIN ends USING (cell, label)
LEFT JOIN bands USING (cell)
LEFT JOIN evicting USING (cell, label)
WHERE role <> 'without eviction'
ORDER BY setting, batch, context DESC, role = 'again', contenders.policy_name <> 'full', role = 'dynamic', contenders.budget, tpot_ms, label
