-- Which policy for whom: recommended, quality first, speed first, or memory-limited, under thresholds that can be printed?
--
-- What a policy costs in quality is what costs.sql says: by default by how many per cent its perplexity is above full's.
-- answer: the pick of answer.sql: a cost of at most `within`; of these the smallest budget, then the least cost.
-- quality: a cost of at most `quality_within`; of these the least KV memory, then the least cost. Where there is an
--     interval its upper end must be within, so that the policy is within and does not merely look so.
-- speed: a cost of at most `within`, and a time per token faster than full's by more than full differs from itself or other work took
--     (differences.sql), in the longest context that exceeds its budget; of these the lowest ratio, and of what overlaps its
--     interval the least cost.
-- memory: at most memory % of full's KV bytes; of these the least cost. A policy of which layers never evict is left
--     out, whatever it took: its memory grows with the text, so no share of full's is its limit.
-- All at the longest length, of policies with a budget shorter than that, which share documents with full. A card that
-- nothing fits says why and names the nearest policy: the one that the smallest change of the card's flag would let in, or
-- where no flag does, the fastest of those within.
WITH candidates AS (
    SELECT costs.*, CASE WHEN spread = 'interval' THEN coalesce(cost_high, cost) ELSE cost END AS cost_at_most
    FROM costs
    JOIN guessing USING (setting)
    WHERE longest AND in_focus AND budget IS NOT NULL AND evicts AND cost IS NOT NULL AND kv_mb IS NOT NULL AND NOT guesses
), timed AS (  -- each policy where its speed shows best what it is: budget exceeded, context long
    SELECT pairs.setting, latency.*, filled AND budget IS NOT NULL AS budget_full
    FROM pairs
    JOIN (SELECT * RENAME (setting AS latency_setting) FROM latency) AS latency USING (latency_setting)
    WHERE role = 'policy' AND smallest_batch AND tpot_ratio IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY pairs.setting, policy ORDER BY filled DESC, context DESC, cell) = 1
), measured AS (
    SELECT candidates.*, context, batch, rounds_n, busy, full_after, tpot_ratio, tpot_ratio_low, tpot_ratio_high, tpot_verdict, tpot_band_low,
        tpot_band_high, ttft_ratio, ttft_ratio_low, ttft_ratio_high,
        coalesce(cost <= getvariable('within'), false) AS near,
        tpot_ratio IS NOT NULL AS is_timed,
        is_timed AND budget_full AS is_full,
        is_full AND tpot_verdict IS NOT NULL AS sure,
        sure AND tpot_verdict = 'faster' AS faster
    FROM candidates
    LEFT JOIN timed USING (setting, policy)
), recommended AS (
    SELECT measured.*, 'answer' AS card
    FROM measured
    JOIN (SELECT setting, policy FROM answer WHERE qualifies) USING (setting, policy)
), quality_first AS (
    SELECT *, 'quality' AS card
    FROM measured
    WHERE cost_at_most <= getvariable('quality_within')
    QUALIFY row_number() OVER (PARTITION BY setting ORDER BY kv_mb, cost, policy) = 1
), fastest AS (
    SELECT setting, tpot_ratio_high AS lowest_high
    FROM measured
    WHERE near AND faster
    QUALIFY row_number() OVER (PARTITION BY setting ORDER BY tpot_ratio, policy) = 1
), speed_first AS (
    SELECT measured.*, 'speed' AS card
    FROM measured
    JOIN fastest USING (setting)
    WHERE near AND faster AND tpot_ratio_low <= lowest_high
    QUALIFY row_number() OVER (PARTITION BY setting ORDER BY cost, tpot_ratio, policy) = 1
), memory_limited AS (
    SELECT *, 'memory' AS card
    FROM measured
    WHERE kv_percent <= getvariable('memory') AND skip_layers = ''
    QUALIFY row_number() OVER (PARTITION BY setting ORDER BY cost, kv_mb, policy) = 1
), picked AS (
    FROM recommended UNION ALL BY NAME FROM quality_first UNION ALL BY NAME FROM speed_first UNION ALL BY NAME FROM memory_limited
), misses AS (  -- what each card's flag would have to be, null where no value of it lets the policy in
    SELECT setting, policy, 'answer' AS card, cost AS needed, cost AS missing FROM measured
    UNION ALL
    SELECT setting, policy, 'quality', cost_at_most, cost_at_most FROM measured
    UNION ALL
    SELECT setting, policy, 'speed', CASE WHEN faster THEN cost END, tpot_ratio FROM measured WHERE faster OR near AND is_full
    UNION ALL
    SELECT setting, policy, 'memory', kv_percent, kv_percent FROM measured WHERE skip_layers = ''
), nearest AS (
    SELECT misses.setting, card, policy AS nearest_policy, skip_layers AS nearest_skip_layers, cost AS nearest_cost,
        cost_high AS nearest_cost_high, spread AS nearest_spread, kv_percent AS nearest_kv_percent,
        tpot_ratio AS nearest_tpot_ratio, tpot_ratio_low AS nearest_tpot_low, tpot_ratio_high AS nearest_tpot_high,
        busy AS nearest_busy, tpot_band_low AS nearest_band_low, tpot_band_high AS nearest_band_high,
        ceil(10 * needed - 1e-9) / 10 AS let_in  -- as it is printed, so rounded up
    FROM misses
    JOIN measured USING (setting, policy)
    QUALIFY row_number() OVER (PARTITION BY misses.setting, card ORDER BY needed IS NULL, needed, missing, cost, policy) = 1
), thresholds AS (
    SELECT card, threshold, CASE getvariable('quality_metric')
        WHEN 'ppl' THEN format('within {:g} % of full', threshold)
        WHEN 'kl' THEN format('within {:g} nats of full', threshold / 100)
        ELSE format('with full’s most likely token at {:g} % of tokens', 100 - threshold) END AS bound
    FROM (VALUES ('answer', getvariable('within')), ('quality', getvariable('quality_within')), ('speed', getvariable('within')),
        ('memory', getvariable('memory'))) AS given(card, threshold)
), every AS (
    SELECT setting FROM perplexity
    UNION
    SELECT setting FROM latency WHERE setting NOT IN (SELECT latency_setting FROM pairs)
), found AS (
    SELECT every.setting, count(policy) AS candidates,
        coalesce(bool_or(cost <= getvariable('quality_within')), false) AS any_looks_close,
        coalesce(bool_or(near), false) AS any_near,
        coalesce(bool_or(near AND is_timed), false) AS any_timed,
        coalesce(bool_or(near AND is_full), false) AS any_full,
        coalesce(bool_or(near AND sure), false) AS any_sure,
        coalesce(bool_or(near AND is_full AND NOT sure AND tpot_ratio_high IS NOT NULL AND tpot_band_low IS NOT NULL), false) AS any_hidden,
        coalesce(bool_or(kv_percent <= getvariable('memory')), false) AS any_small,
        (SELECT count(*) FROM perplexity WHERE perplexity.setting = every.setting) AS quality_rows,
        (SELECT count(*) FROM perplexity WHERE perplexity.setting = every.setting AND policy_name = 'full') AS full_rows,
        (SELECT count(budget) FROM costs WHERE costs.setting = every.setting AND cost IS NOT NULL) AS bounded,
        (SELECT count(budget) FROM costs WHERE costs.setting = every.setting AND ppl_ratio IS NOT NULL) AS beside_full,
        coalesce((SELECT guesses FROM guessing WHERE guessing.setting = every.setting), false) AS guesses
    FROM every
    LEFT JOIN measured USING (setting)
    GROUP BY every.setting
), judged AS (
    SELECT found.setting, card, policy, policy_name, budget, start_size, recent_size, policy_fields, skip_layers, length,
        paired_documents, spread, getvariable('quality_metric') AS metric, cost, cost_low, cost_high, kl_nats, same_top_percent, ppl_change_percent, ppl_change_low_percent, ppl_change_high_percent, accuracy_change_points,
        accuracy_change_low_points, accuracy_change_high_points, kv_mb, kv_percent, 100 - kv_percent AS kv_saved_percent, context, batch,
        rounds_n, tpot_ratio, tpot_ratio_low, tpot_ratio_high, tpot_verdict, tpot_band_low, tpot_band_high, ttft_ratio, ttft_ratio_low,
        ttft_ratio_high, busy, is_full, full_after, threshold,
        CASE
            WHEN policy IS NOT NULL THEN NULL
            WHEN quality_rows = 0 THEN 'no perplexity measured'
            WHEN bounded = 0 AND beside_full > 0 THEN 'no divergence from full measured'
            WHEN full_rows = 0 THEN 'no results of full beside these: name it in --policies, or finish the sweep'
            WHEN bounded = 0 THEN 'no policy with a budget measured beside full'
            WHEN guesses THEN 'full’s own perplexity is near the size of the vocabulary: the model guesses'
            WHEN found.candidates = 0 THEN 'no budget is exceeded by the texts'
            WHEN card = 'quality' AND any_looks_close THEN 'no policy surely ' || bound
            WHEN card = 'memory' AND any_small THEN format('none that stays within {:g} % of full’s memory as the text grows', threshold)
            WHEN card = 'memory' THEN format('no policy within {:g} % of full’s memory', threshold)
            WHEN card IN ('answer', 'quality') OR NOT any_near THEN 'no policy ' || bound
            WHEN NOT any_timed THEN 'no time per token measured'
            WHEN NOT any_full THEN 'no budget is full at the contexts timed'
            WHEN any_hidden THEN 'too much else ran on the machine to tell which is faster'
            WHEN NOT any_sure THEN 'too few rounds to tell which is faster'
            ELSE 'none is faster by more than full differs from itself'
        END AS why
    FROM found
    CROSS JOIN thresholds
    LEFT JOIN picked USING (setting, card)
)
SELECT judged.*, nearest.* EXCLUDE (setting, card)
FROM judged
LEFT JOIN nearest ON nearest.setting = judged.setting AND nearest.card = judged.card AND policy IS NULL
ORDER BY judged.setting, list_position(['answer', 'quality', 'speed', 'memory'], judged.card)
