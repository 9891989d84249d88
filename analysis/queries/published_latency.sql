-- The seed saw TTFT and throughput fall with the cache: what do we measure for the same budgets?
--
-- Comparable: the same model, method with its positions, budget, context (to 5 %) and hardware; a ratio of times carries over
-- to none of these. Reproduced: comparable, and the published ratio lies in our 95 % interval over rounds or within 2 %.
WITH seed_full AS (
    SELECT model, ttft_s, throughput_tok_s FROM published_seed_main WHERE method = 'full'
), claims AS (
    SELECT source, seed.model, method, start_size, budget, tokens, positions, hardware::VARCHAR AS hardware, caveat,
        seed.ttft_s / seed_full.ttft_s AS ttft_claimed,
        seed.throughput_tok_s / seed_full.throughput_tok_s AS throughput_claimed
    FROM published_seed_main AS seed
    JOIN seed_full USING (model)
    WHERE method <> 'full'
), measured AS (
    SELECT claims.*, latency.* EXCLUDE (model, budget, start_size), latency.model AS our_model, noise.hardware AS our_hardware,
        replace(split_part(split_part(split_part(latency.model, '@', 1), '/', -1), ':', -1), '-deduped', '')
            = replace(split_part(claims.model, '/', -1), '-deduped', '') AS same_model
    FROM claims
    JOIN latency ON latency.policy_name = method AND latency.budget = claims.budget AND latency.start_size = claims.start_size
    JOIN noise USING (cell)
    WHERE role = 'policy' AND in_focus AND latency.smallest_batch
        AND latency.full_after = latency.budget  -- layers alike, as theirs are: else some evict within the budget
), first AS (  -- no prompt longer than the budget: every policy does the same work, and the ratio should be one
    SELECT * FROM measured WHERE context <= budget
    QUALIFY row_number() OVER (PARTITION BY method, budget ORDER BY same_model DESC, context DESC, setting) = 1
), further AS (
    SELECT * FROM measured
    QUALIFY row_number() OVER (PARTITION BY method, budget ORDER BY same_model DESC, context DESC, setting) = 1
), ratios AS (
    SELECT *, 'TTFT ÷ full''s' AS metric, ttft_claimed AS published, ttft_ratio AS ours, ttft_ratio_low AS low,
        ttft_ratio_high AS high, prefills_n AS n
    FROM first
    UNION ALL BY NAME
    SELECT *, 'throughput ÷ full''s' AS metric, throughput_claimed AS published, 1 / tpot_ratio AS ours, 1 / tpot_ratio_high AS low,
        1 / tpot_ratio_low AS high, rounds_n AS n
    FROM further
), compared AS (
    SELECT *,
        array_to_string(list_filter([
            CASE WHEN NOT same_model THEN 'model: ours is ' || our_model END,
            CASE WHEN variant IS DISTINCT FROM positions
                THEN format('positions: ours are “{}”, theirs “{}”', variant, positions) END,
            CASE WHEN abs(context - tokens) > 0.05 * tokens
                THEN format('context: ours is {:,} tokens, theirs {:,}', context, tokens) END,
            CASE WHEN hardware IS NULL THEN 'hardware: theirs is not stated'
                WHEN hardware IS DISTINCT FROM our_hardware
                THEN format('hardware: ours is {}, theirs {}', coalesce(our_hardware, 'not recorded'), hardware) END
        ], lambda why: why IS NOT NULL), '; ') AS apart,
        published BETWEEN low AND high AS in_interval
    FROM ratios
)
SELECT source, model, metric, method, start_size, budget, tokens, caveat, published, ours, low, high,
    100 * (ours / published - 1) AS difference_percent, setting, policy, context, batch, n, busy,
    CASE
        WHEN apart <> '' THEN 'not comparable'
        WHEN coalesce(in_interval, false) OR abs(ours / published - 1) <= 0.02 THEN 'reproduced'
        ELSE 'differs'
    END AS verdict,
    CASE
        WHEN verdict = 'not comparable' THEN apart
        WHEN in_interval THEN 'within our interval'
        WHEN verdict = 'reproduced' THEN 'within 2 %'
        ELSE coalesce(CASE WHEN NOT in_interval THEN 'outside our interval and ' END, '') || 'more than 2 % apart'
    END AS reason
FROM compared
ORDER BY metric, method, budget
