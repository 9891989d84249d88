-- What do the ways of numbering cached keys do to the same policy: cache, absolute, frozen?
--
-- over_cache: perplexity against that of the same policy with “cache”, paired by document, from ten documents on.
SELECT setting, base, variant, policy, budget, ppl_corpus, ppl_change_percent, ppl_change_low_percent,
    ppl_change_high_percent,
    100 * own.ppl_change_low AS over_cache_low_percent,
    100 * own.ppl_change_high AS over_cache_high_percent,
    skip_layers, kv_percent, perplexity.spread, paired_documents, length
FROM perplexity
LEFT JOIN (SELECT * FROM mode_intervals WHERE spread = 'interval') AS own USING (setting, policy, length)
WHERE longest AND policy_name <> 'full' AND ppl_ratio IS NOT NULL
QUALIFY count(*) OVER (PARTITION BY setting, base) > 1
ORDER BY setting, budget, base, variant
