-- How much more does a batch put out, at the longest context that was run with several batch sizes?
WITH shown AS (
    SELECT *, count(DISTINCT batch) OVER (PARTITION BY setting, context) AS batches
    FROM latency
    WHERE role IN ('policy', 'dynamic') AND in_focus AND usual_ends
), longest AS (
    SELECT * FROM shown WHERE batches > 1 QUALIFY context = max(context) OVER (PARTITION BY setting)
), budgets AS (
    SELECT DISTINCT setting, budget FROM longest WHERE budget IS NOT NULL
)
SELECT longest.setting, budgets.budget, series, contender, context, batch, throughput, tpot_ms, kv_mb, busy
FROM longest
JOIN budgets ON budgets.setting = longest.setting AND (longest.budget = budgets.budget OR longest.budget IS NULL)
ORDER BY setting, budgets.budget, series, batch
