-- Does a policy stay close to the full cache as the text grows longer?
-- growth: at the longest length, how much further over full's its perplexity is than at the first at which it evicts, with
-- an interval over documents.
SELECT setting, budget, series, policy, length, ppl_corpus, ppl_change_percent, ppl_change_low_percent, ppl_change_high_percent,
    100 * growth.ppl_change_low AS growth_low_percent, 100 * growth.ppl_change_high AS growth_high_percent,
    trained_context,
    length > trained_context AS beyond_trained_context
FROM perplexity
LEFT JOIN (SELECT setting, policy, length, ppl_change_low, ppl_change_high FROM growth_intervals WHERE spread = 'interval') AS growth
    USING (setting, policy, length)
WHERE in_focus AND usual_ends AND budget IS NOT NULL AND ppl_change_percent IS NOT NULL
QUALIFY budget < max(length) OVER (PARTITION BY setting) AND min(length) OVER (PARTITION BY setting) < max(length) OVER (PARTITION BY setting)
ORDER BY setting, budget, series, length
