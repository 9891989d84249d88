-- How does perplexity fall as the budget grows, and how far is it from the full cache?
SELECT setting, series, policy, skip_layers, budget, ppl_corpus, ppl_placed, ppl_change_percent, kv_percent, length
FROM main
WHERE longest AND in_focus
ORDER BY setting, series, budget
