-- How far are a policy's predictions from the full cache's, over the whole vocabulary, on average and in the tail?
--
-- KL(full ‖ policy) of each token in nats. Quantiles are of all documents' tokens together, between neighbours linear.
-- A policy is tied with the least of its budget if the 95 % interval of the difference of their mean KL contains 0: paired on
-- the same documents, from ten documents on, unknown below.
SELECT perplexity.setting, budget, series, policy, skip_layers, kl_nats, kl_nats_low, kl_nats_high,
    ends[1] AS kl_median_nats, ends[2] AS kl_p99_nats, ends[3] AS kl_p999_nats, kl_max_nats,
    same_top_percent, same_top_low_percent, same_top_high_percent, ppl_change_percent, kl_tokens, paired_documents, perplexity.spread, length,
    row_number() OVER (PARTITION BY perplexity.setting, budget ORDER BY kl_nats, policy) = 1 AS least,
    CASE WHEN least THEN false ELSE rival.ppl_change_low <= 0 AND rival.ppl_change_high >= 0 END AS tied_with_least
FROM perplexity
JOIN quantiles USING (setting, policy)
LEFT JOIN (SELECT * FROM kl_rival_intervals WHERE spread = 'interval') AS rival USING (setting, policy, length)
WHERE longest AND in_focus AND evicts AND kl_nats IS NOT NULL
ORDER BY perplexity.setting, budget, kl_nats, policy
