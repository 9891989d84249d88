-- What does a larger budget buy in perplexity and accuracy?
SELECT setting, series, policy, skip_layers, budget, ppl_change_percent, ppl_change_low_percent, ppl_change_high_percent,
    accuracy_change_points, accuracy_change_low_points, accuracy_change_high_points, ppl_corpus, spread, length
FROM perplexity
WHERE longest AND in_focus AND usual_ends AND evicts AND budget IS NOT NULL
ORDER BY setting, budget, series, policy
