-- How many attention sinks are enough, when sinks and recent tokens share one budget?
WITH candidates AS (
    SELECT setting, budget, start_size, policy, ppl_corpus, ppl_placed, ppl_change_percent,
        ppl_change_low_percent, ppl_change_high_percent, spread, paired_documents, length
    FROM main
    WHERE longest AND in_focus AND evicts AND policy_name IN ('streaming_llm', 'recent_only')
    QUALIFY row_number() OVER (PARTITION BY setting, budget, start_size ORDER BY policy_name, policy) = 1
)
SELECT candidates.*, full_cache.ppl_corpus AS full_ppl
FROM candidates
LEFT JOIN (SELECT setting, ppl_corpus FROM main WHERE longest AND policy_name = 'full') AS full_cache USING (setting)
QUALIFY count(*) OVER (PARTITION BY setting, budget) > 1
ORDER BY setting, budget, start_size
