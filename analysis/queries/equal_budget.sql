-- At the same budget, which method stays closest to the full cache?
--
-- A policy is tied with the best of its budget if the 95 % interval of its perplexity over the best one's contains 1: paired
-- on the same documents, from ten documents on, unknown below. Overlap of their two intervals against full would call ties
-- what this tells apart, for both share full's documents. Not corrected for having picked the best or for asking often.
SELECT perplexity.setting, budget, series, policy, skip_layers, ppl_corpus, ppl_change_percent,
    ppl_change_low_percent, ppl_change_high_percent, accuracy_change_points, perplexity.spread, paired_documents, perplexity.length,
    row_number() OVER (PARTITION BY perplexity.setting, budget ORDER BY ppl_ratio, policy) = 1 AS best,
    100 * rival.ppl_change_low AS behind_best_low_percent,
    100 * rival.ppl_change_high AS behind_best_high_percent,
    CASE WHEN best THEN false ELSE rival.ppl_change_low <= 0 AND rival.ppl_change_high >= 0 END AS tied_with_best
FROM perplexity
LEFT JOIN (SELECT * FROM rival_intervals WHERE spread = 'interval') AS rival USING (setting, policy, length)
WHERE longest AND in_focus AND budget IS NOT NULL AND evicts AND ppl_ratio IS NOT NULL
QUALIFY count(*) OVER (PARTITION BY perplexity.setting, budget) > 1
ORDER BY perplexity.setting, budget, ppl_ratio, policy
