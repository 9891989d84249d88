-- How does each policy do on each document within its first L tokens, beside the full cache on the same document?
WITH chosen AS (
    SELECT cell, setting, policy, policy_name, base, series, variant, position_mode, skip_layers, strategy, keep_ratio, budget,
        start_size, recent_size, policy_fields, in_focus, usual_ends, evicts_after, every, document, tokens, trained_context, kv_bytes, kv_bytes_full, length,
        n, nll_sum, correct, invalid, nullif(kl_n, 0) AS kl_n, CASE WHEN kl_n > 0 THEN kl_sum END AS kl_sum, CASE WHEN kl_n > 0 THEN same_top END AS same_top
    FROM prefixes
    JOIN cells USING (cell)
    QUALIFY turn = min(turn) OVER (PARTITION BY setting, policy, document, length)
)
SELECT chosen.* EXCLUDE (cell),
    -- Where a run scores a sample of tokens, full's on just these.
    CASE WHEN chosen.every > 1 THEN sampled.n ELSE full_cache.n END AS full_n,
    CASE WHEN chosen.every > 1 THEN sampled.nll_sum ELSE full_cache.nll_sum END AS full_nll_sum,
    CASE WHEN chosen.every > 1 THEN sampled.correct ELSE full_cache.correct END AS full_correct,
    -- Only where both have numbers for as many tokens: else what is lost on other tokens would pass for the policy's cost.
    coalesce(chosen.n > 0 AND chosen.n = full_n, false) AS paired
FROM chosen
LEFT JOIN (SELECT * FROM chosen WHERE policy_name = 'full') AS full_cache USING (setting, document, length)
LEFT JOIN sampled ON sampled.cell = chosen.cell AND sampled.length = chosen.length
