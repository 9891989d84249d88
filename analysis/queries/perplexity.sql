-- What does each policy cost in perplexity, accuracy and distance from full's predictions, and which KV memory does it keep?
WITH held AS (  -- of runs of just this length, whether losses come from these or from longer ones
    SELECT setting, policy, tokens AS length, avg(kv_bytes) AS held, avg(kv_bytes_full) AS held_by_full FROM cells GROUP BY ALL
), sizes AS (  -- of longer ones: bytes for each token of the text, `endless` of them in layers that never evict
    SELECT setting, policy, tokens, compared_at AS length, kv_bytes, kv_bytes_full / tokens AS each,
        policy_fields LIKE '%layer_budgets=%' AS differ,
        CASE WHEN differ THEN budget ELSE evicts_after END AS most,  -- that a layer holds
        CASE WHEN tokens > most THEN (kv_bytes - each * most) / (tokens - most) ELSE each END AS endless
    FROM cells
    JOIN compared_at USING (setting)
    WHERE tokens > compared_at AND every IS NULL
        -- Where layers differ in their budgets, none has twice the mean: beyond that all are full.
        AND (NOT differ OR compared_at >= 2 * budget)
), read_off AS (  -- where policies are compared, what a longer run had held by then
    SELECT setting, policy, length, avg(endless * length + (each - endless) * coalesce(least(length, most), 0)) AS held,
        avg(each * length) AS held_by_full
    FROM sizes
    WHERE (setting, policy, length) NOT IN (SELECT (setting, policy, length) FROM held)
    GROUP BY ALL
), totals AS (
    SELECT setting, policy, policy_name, base, series, variant, position_mode, skip_layers, strategy, keep_ratio, budget,
        start_size, recent_size, policy_fields, in_focus, usual_ends, evicts_after, every, trained_context, length,
        count(*) AS documents,
        count(*) FILTER (paired) AS paired_documents,
        sum(n)::BIGINT AS scored,
        sum(invalid)::BIGINT AS invalid,
        any_value(held) / 1e6 AS kv_mb,
        100.0 * any_value(held / held_by_full) AS kv_percent,
        exp(sum(nll_sum) / nullif(sum(n), 0)) AS ppl_corpus,
        avg(exp(nll_sum / nullif(n, 0))) AS ppl_mean,
        100.0 * sum(correct) / nullif(sum(n), 0) AS accuracy_percent,
        sum(nll_sum) FILTER (paired) / sum(n) FILTER (paired) AS nll,
        sum(full_nll_sum) FILTER (paired) / sum(full_n) FILTER (paired) AS full_nll,
        avg(exp(nll_sum / n)) FILTER (paired) / avg(exp(full_nll_sum / full_n)) FILTER (paired) AS mean_ratio,
        sum(correct) FILTER (paired) / sum(n) FILTER (paired) AS accuracy,
        sum(full_correct) FILTER (paired) / sum(full_n) FILTER (paired) AS full_accuracy,
        -- Of policies of which all documents were compared.
        bool_and(coalesce(kl_n, 0) > 0) FILTER (paired) AS all_compared,
        CASE WHEN all_compared THEN sum(kl_sum) FILTER (paired) / sum(kl_n) FILTER (paired) END AS kl_nats,
        CASE WHEN all_compared THEN 100.0 * sum(same_top) FILTER (paired) / sum(kl_n) FILTER (paired) END AS same_top_percent
    FROM documents
    LEFT JOIN (FROM held UNION ALL FROM read_off) USING (setting, policy, length)
    GROUP BY ALL
)
SELECT setting, policy, policy_name, base, series, variant, position_mode, skip_layers, strategy, keep_ratio, budget,
    start_size, recent_size, policy_fields, in_focus, usual_ends, every, trained_context, length,
    length = compared_at AS longest,  -- of those that most policies reach
    policy_name = 'full' OR coalesce(evicts_after < length, true) AS evicts,  -- else all it says is what full says
    documents, paired_documents, scored, invalid,
    kv_mb, kv_percent, ppl_corpus, ppl_mean, accuracy_percent,
    100 * (exp(nll - full_nll) - 1) AS ppl_change_percent,
    exp(nll - full_nll) AS ppl_ratio,
    100 * (mean_ratio - 1) AS ppl_mean_change_percent,
    100 * (accuracy / nullif(full_accuracy, 0) - 1) AS accuracy_change_percent,
    100 * (accuracy - full_accuracy) AS accuracy_change_points,
    kl_nats, kl_low AS kl_nats_low, kl_high AS kl_nats_high,
    same_top_percent, 100 * same_top_low AS same_top_low_percent, 100 * same_top_high AS same_top_high_percent,
    CASE WHEN policy_name <> 'full' THEN spread END AS spread, (max(documents) FILTER (policy_name = 'full') OVER prefix)::BIGINT AS full_documents,
    100 * ppl_change_low AS ppl_change_low_percent,
    100 * ppl_change_high AS ppl_change_high_percent,
    100 * ppl_mean_change_low AS ppl_mean_change_low_percent,
    100 * ppl_mean_change_high AS ppl_mean_change_high_percent,
    points_low AS accuracy_change_low_points,
    points_high AS accuracy_change_high_points,
    100 * accuracy_change_low AS accuracy_change_low_percent,
    100 * accuracy_change_high AS accuracy_change_high_percent,
    -- Of the levels, over documents: given where every document is paired, since only these are resampled.
    CASE WHEN complete THEN ppl_corpus_low END AS ppl_corpus_low,
    CASE WHEN complete THEN ppl_corpus_high END AS ppl_corpus_high,
    CASE WHEN complete THEN ppl_mean_low END AS ppl_mean_low,
    CASE WHEN complete THEN ppl_mean_high END AS ppl_mean_high,
    CASE WHEN complete THEN 100 * accuracy_low END AS accuracy_low_percent,
    CASE WHEN complete THEN 100 * accuracy_high END AS accuracy_high_percent
FROM (SELECT *, spread = 'interval' AND documents = paired_documents AS complete
    FROM totals LEFT JOIN intervals USING (setting, policy, length) JOIN compared_at USING (setting))
WINDOW prefix AS (PARTITION BY setting, length)
ORDER BY setting, length DESC, policy_name <> 'full', budget, ppl_corpus, policy
