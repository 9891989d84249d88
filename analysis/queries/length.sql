-- Does a policy stay close to the full cache as the text grows longer?
SELECT setting, budget, series, policy, length, ppl_corpus, ppl_change_percent, ppl_change_low_percent, ppl_change_high_percent,
    trained_context,
    length > trained_context AS beyond_trained_context
FROM perplexity
WHERE in_focus AND usual_ends AND budget IS NOT NULL AND ppl_change_percent IS NOT NULL
QUALIFY budget < max(length) OVER (PARTITION BY setting) AND min(length) OVER (PARTITION BY setting) < max(length) OVER (PARTITION BY setting)
ORDER BY setting, budget, series, length
