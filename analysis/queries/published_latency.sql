-- The seed saw TTFT and throughput fall with the cache: what do we measure for the same budgets?
WITH seed_full AS (
    SELECT model, ttft_s, throughput_tok_s FROM published_seed_main WHERE method = 'full'
), claims AS (
    SELECT source, seed.model, method, start_size, budget, seed.ttft_s / seed_full.ttft_s AS ttft_claimed,
        seed.throughput_tok_s / seed_full.throughput_tok_s AS throughput_claimed
    FROM published_seed_main AS seed
    JOIN seed_full USING (model)
    WHERE method <> 'full'
), measured AS (
    SELECT claims.*, latency.* EXCLUDE (model, budget, start_size),
        replace(split_part(split_part(latency.model, '/', -1), ':', -1), '-deduped', '')
            = replace(split_part(claims.model, '/', -1), '-deduped', '') AS same_model
    FROM claims
    JOIN latency ON latency.policy_name = method AND latency.budget = claims.budget AND latency.start_size = claims.start_size
    WHERE role = 'policy' AND in_focus AND smallest_batch
), first AS (  -- no prompt longer than the budget: every policy does the same work, and the ratio should be one
    SELECT * FROM measured WHERE context <= budget
    QUALIFY row_number() OVER (PARTITION BY method, budget ORDER BY noisy IS NOT NULL, same_model DESC, context DESC, setting) = 1
), further AS (
    SELECT * FROM measured
    QUALIFY row_number() OVER (PARTITION BY method, budget ORDER BY noisy IS NOT NULL, same_model DESC, context DESC, setting) = 1
)
SELECT source, 'TTFT ÷ full''s' AS metric, method, start_size, budget, ttft_claimed AS published, ttft_ratio AS ours,
    ttft_ratio_low AS low, ttft_ratio_high AS high, setting, policy, context, batch, prefills_n AS n, noisy
FROM first
UNION ALL
SELECT source, 'throughput ÷ full''s', method, start_size, budget, throughput_claimed, 1 / tpot_ratio, 1 / tpot_ratio_high,
    1 / tpot_ratio_low, setting, policy, context, batch, rounds_n, noisy
FROM further
ORDER BY metric, method, budget
