-- How many attention sinks are enough, when sinks and recent tokens share one budget?
SELECT setting, budget, start_size, policy, ppl_corpus, ppl_change_percent, ppl_change_low_percent, ppl_change_high_percent,
    spread, paired_documents, length
FROM perplexity
WHERE longest AND in_focus AND evicts AND recent_size IS NOT NULL AND ppl_change_percent IS NOT NULL
QUALIFY row_number() OVER (PARTITION BY setting, budget, start_size ORDER BY policy_name, policy) = 1
    AND count(DISTINCT start_size) OVER (PARTITION BY setting, budget) > 2  -- of two, the charts by budget say all
ORDER BY setting, budget, start_size
