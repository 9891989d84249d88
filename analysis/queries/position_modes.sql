-- What do the ways of numbering cached keys do to the same policy: cache, absolute, frozen?
SELECT setting, base, variant, policy, budget, ppl_corpus, ppl_change_percent, ppl_change_low_percent,
    ppl_change_high_percent,
    skip_layers, kv_percent, spread, paired_documents, length
FROM perplexity
WHERE longest AND policy_name <> 'full' AND ppl_ratio IS NOT NULL
QUALIFY count(*) OVER (PARTITION BY setting, base) > 1
ORDER BY setting, budget, base, variant
