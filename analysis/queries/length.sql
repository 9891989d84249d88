-- Does a policy stay close to the full cache as the text grows longer?
-- stretch: on the tokens since the length before alone, as the first L tokens also count those before anything was evicted.
-- growth: how much further over full's perplexity is on the last stretch than on the first after eviction has begun, an interval
-- over documents.
WITH shares AS (
    SELECT setting, policy, length, since, evicts_after,
        100 * (exp(fsum(nll_sum) / sum(n) - fsum(full_nll_sum) / sum(full_n)) - 1) AS stretch_change_percent
    FROM stretches
    GROUP BY setting, policy, length, since, evicts_after
), ends AS (
    SELECT setting, policy, length, 100 * ppl_change_low AS stretch_change_low_percent, 100 * ppl_change_high AS stretch_change_high_percent
    FROM stretch_intervals
), growth AS (
    SELECT setting, policy, length, 100 * ppl_change_low AS growth_low_percent, 100 * ppl_change_high AS growth_high_percent
    FROM growth_intervals
    WHERE spread = 'interval'
)
SELECT setting, budget, evicts_after, series, policy, length, ppl_corpus, ppl_change_percent, ppl_change_low_percent, ppl_change_high_percent,
    since, stretch_change_percent, stretch_change_low_percent, stretch_change_high_percent, growth_low_percent, growth_high_percent,
    trained_context
FROM perplexity
JOIN shares USING (setting, policy, length)
LEFT JOIN ends USING (setting, policy, length)
LEFT JOIN growth USING (setting, policy, length)
WHERE in_focus AND usual_ends AND budget IS NOT NULL AND ppl_change_percent IS NOT NULL
QUALIFY evicts_after < max(length) OVER (PARTITION BY setting) AND min(length) OVER (PARTITION BY setting) < max(length) OVER (PARTITION BY setting)
ORDER BY setting, budget, series, length
