-- How do time per token, time to the first token and memory grow with the context, by policy?
WITH shown AS (
    SELECT * FROM latency WHERE role IN ('policy', 'dynamic') AND in_focus AND usual_ends AND smallest_batch
), budgets AS (
    SELECT DISTINCT setting, budget FROM shown WHERE budget IS NOT NULL
)
SELECT shown.setting, budgets.budget, series, contender, skip_layers, context, batch, tpot_ms, tpot_ratio, tpot_ratio_low,
    tpot_ratio_high, ttft_ms, ttft_ratio, ttft_ratio_low, ttft_ratio_high, kv_mb, allocated_mb, peak_mb, busy
FROM shown
JOIN budgets ON budgets.setting = shown.setting AND (shown.budget = budgets.budget OR shown.budget IS NULL)
ORDER BY setting, budgets.budget, series, context
