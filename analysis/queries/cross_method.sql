-- At the same budget, which method stays closest to the full cache?
SELECT setting, budget, series, policy, skip_layers, ppl_corpus, ppl_ratio, ppl_ratio_low, ppl_ratio_high, ppl_change_percent,
    ppl_change_low_percent, ppl_change_high_percent, accuracy_change_points, spread, paired_documents, length
FROM main
WHERE longest AND in_focus AND budget IS NOT NULL AND ppl_ratio IS NOT NULL
QUALIFY count(*) OVER (PARTITION BY setting, budget) > 1
ORDER BY setting, budget, ppl_ratio, policy
