-- Does it matter how tokens are scored, once the first and the last are protected?
--
-- At one budget, for each number of sinks and each share of the newest tokens that stay: each scorer's perplexity against
-- full's, against that of keeping as many drawn at random (`control_intervals`, paired by document), and what the whole
-- budget costs where all beside the sinks are the newest (`unscored`). Of policies that differ in nothing of that the
-- shortest label counts.
WITH shown AS (
    SELECT perplexity.*, scorer, recent_share
    FROM perplexity
    JOIN (SELECT policy, scorer, recent_share FROM policies) USING (policy)
    WHERE longest AND in_focus AND evicts AND scorer IS NOT NULL AND ppl_ratio IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY setting, budget, start_size, recent_share, scorer ORDER BY length(policy), policy) = 1
), unscored AS (
    SELECT setting, budget, start_size, ppl_change_percent AS unscored_change_percent FROM shown WHERE scorer = 'none'
)
SELECT setting, budget, start_size, 100 * recent_share AS recent_percent, scorer, policy, ppl_corpus, ppl_change_percent,
    ppl_change_low_percent, ppl_change_high_percent, shown.spread, paired_documents, length, unscored_change_percent,
    CASE WHEN control.spread IS NOT NULL AND paired_documents = max(paired_documents) FILTER (scorer = 'random') OVER ends
        THEN 100 * (ppl_ratio / max(ppl_ratio) FILTER (scorer = 'random') OVER ends - 1) END AS over_random_percent,
    control.spread AS over_random_spread,
    100 * control.ppl_change_low AS over_random_low_percent,
    100 * control.ppl_change_high AS over_random_high_percent
FROM shown
LEFT JOIN unscored USING (setting, budget, start_size)
LEFT JOIN (SELECT setting, policy, length, spread, ppl_change_low, ppl_change_high FROM control_intervals) AS control
    USING (setting, policy, length)
WHERE scorer <> 'none' AND recent_share IS NOT NULL  -- with sinks and newest tokens alone there is nothing to score
WINDOW ends AS (PARTITION BY setting, budget, start_size, recent_share)
QUALIFY count(DISTINCT scorer) OVER (PARTITION BY setting, budget, start_size) > 1
    AND count(DISTINCT recent_share) OVER (PARTITION BY setting, budget, start_size) > 1
ORDER BY setting, budget, start_size, recent_share, scorer
