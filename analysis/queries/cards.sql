-- Which policy for whom: quality first, speed first, or memory-limited, under thresholds that can be printed?
--
-- quality: perplexity at most quality_within % above full's; of these the least KV memory, then the least change. Where
--     there is an interval its upper end must be within, so that the policy is within and does not merely look so.
-- speed: perplexity at most within % above full's, and an interval of time per token below full's in the longest quiet
--     context that exceeds its budget; of these the lowest ratio, and of what overlaps its interval the least change.
-- memory: at most memory % of full's KV bytes; of these the least change. A policy of which layers never evict is left
--     out, whatever it took: its memory grows with the text, so no share of full's is its limit.
-- All at the longest length, of policies with a budget shorter than that, which share documents with full. A card that
-- nothing fits says why.
WITH candidates AS (
    SELECT *, CASE WHEN spread = 'interval' THEN coalesce(ppl_change_high_percent, ppl_change_percent)
            ELSE ppl_change_percent END AS ppl_change_at_most
    FROM main
    WHERE longest AND in_focus AND budget < length AND ppl_ratio IS NOT NULL
), timed AS (  -- each policy where its speed shows best what it is: budget exceeded, machine quiet, context long
    SELECT pairs.setting, latency.*, context > budget AS budget_full
    FROM pairs
    JOIN (SELECT * RENAME (setting AS latency_setting) FROM latency) AS latency USING (latency_setting)
    WHERE role = 'policy' AND smallest_batch AND tpot_ratio IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY pairs.setting, policy
        ORDER BY context > budget DESC, noisy IS NOT NULL, context DESC, cell) = 1
), measured AS (
    SELECT candidates.*, context, batch, rounds_n, noisy, tpot_ratio, tpot_ratio_low, tpot_ratio_high, ttft_ratio, ttft_ratio_low,
        ttft_ratio_high, coalesce(ppl_change_percent <= getvariable('within'), false) AS near,
        tpot_ratio IS NOT NULL AS is_timed,
        is_timed AND noisy IS NULL AS quiet,
        quiet AND budget_full AS full_and_quiet,
        full_and_quiet AND tpot_ratio_high IS NOT NULL AS sure,
        sure AND tpot_ratio_high < 1 AS faster
    FROM candidates
    LEFT JOIN timed USING (setting, policy)
), quality_first AS (
    SELECT *, 'quality' AS card
    FROM measured
    WHERE ppl_change_at_most <= getvariable('quality_within')
    QUALIFY row_number() OVER (PARTITION BY setting ORDER BY kv_mb, ppl_change_percent, policy) = 1
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
    QUALIFY row_number() OVER (PARTITION BY setting ORDER BY ppl_change_percent, tpot_ratio, policy) = 1
), memory_limited AS (
    SELECT *, 'memory' AS card
    FROM measured
    WHERE kv_percent <= getvariable('memory') AND skip_layers = ''
    QUALIFY row_number() OVER (PARTITION BY setting ORDER BY ppl_change_percent, kv_mb, policy) = 1
), picked AS (
    FROM quality_first UNION ALL BY NAME FROM speed_first UNION ALL BY NAME FROM memory_limited
), thresholds (card, threshold_percent) AS (
    VALUES ('quality', getvariable('quality_within')), ('speed', getvariable('within')), ('memory', getvariable('memory'))
), every AS (
    SELECT setting FROM main
    UNION
    SELECT setting FROM latency WHERE setting NOT IN (SELECT latency_setting FROM pairs)
), found AS (
    SELECT every.setting, count(policy) AS candidates,
        coalesce(bool_or(ppl_change_percent <= getvariable('quality_within')), false) AS any_looks_close,
        coalesce(bool_or(near), false) AS any_near,
        coalesce(bool_or(near AND is_timed), false) AS any_timed,
        coalesce(bool_or(near AND quiet), false) AS any_quiet,
        coalesce(bool_or(near AND full_and_quiet), false) AS any_full,
        coalesce(bool_or(near AND sure), false) AS any_sure,
        coalesce(bool_or(kv_percent <= getvariable('memory')), false) AS any_small,
        (SELECT count(*) FROM main WHERE main.setting = every.setting) AS quality_rows,
        (SELECT count(budget) FROM main WHERE main.setting = every.setting AND ppl_ratio IS NOT NULL) AS bounded
    FROM every
    LEFT JOIN measured USING (setting)
    GROUP BY every.setting
)
SELECT found.setting, card, policy, policy_name, budget, start_size, keep_ratio, strategy, position_mode, skip_layers, length,
    paired_documents, spread, ppl_change_percent, ppl_change_low_percent, ppl_change_high_percent, accuracy_change_points,
    accuracy_change_low_points, accuracy_change_high_points, kv_mb, kv_percent, 100 - kv_percent AS kv_saved_percent, context, batch,
    rounds_n, tpot_ratio, tpot_ratio_low, tpot_ratio_high, ttft_ratio, ttft_ratio_low, ttft_ratio_high, noisy, threshold_percent,
    CASE
        WHEN policy IS NOT NULL THEN NULL
        WHEN quality_rows = 0 THEN 'no perplexity measured'
        WHEN bounded = 0 THEN 'no policy with a budget measured beside full'
        WHEN found.candidates = 0 THEN 'no budget is exceeded by the texts'
        WHEN card = 'quality' AND any_looks_close THEN format('no policy surely within {:g} % of full', threshold_percent)
        WHEN card = 'memory' AND any_small THEN format('none that stays within {:g} % of full’s memory as the text grows', threshold_percent)
        WHEN card = 'memory' THEN format('no policy within {:g} % of full’s memory', threshold_percent)
        WHEN card = 'quality' OR NOT any_near THEN format('no policy within {:g} % of full', threshold_percent)
        WHEN NOT any_timed THEN 'no time per token measured'
        WHEN NOT any_quiet THEN 'time per token measured on a busy machine only'
        WHEN NOT any_full THEN 'no budget is full at the contexts timed'
        WHEN NOT any_sure THEN 'too few rounds to tell which is faster'
        ELSE 'none is measurably faster'
    END AS why
FROM found
CROSS JOIN thresholds
LEFT JOIN picked USING (setting, card)
ORDER BY found.setting, list_position(['quality', 'speed', 'memory'], card)
