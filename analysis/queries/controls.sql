-- How does each scorer do on each document beside random, with the same tokens protected, on the longest texts?
-- Random's sums stand where `documents` has full's, so that the same paired intervals can be made of them.
WITH shown AS (
    SELECT setting, policy, length, budget, start_size, recent_share, scorer
    FROM perplexity
    JOIN (SELECT policy, scorer, recent_share FROM policies) USING (policy)
    WHERE longest AND in_focus AND evicts AND scorer <> 'none' AND ppl_ratio IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY setting, budget, start_size, recent_share, scorer ORDER BY length(policy), policy) = 1
), sums AS (
    SELECT setting, policy, length, document, n, nll_sum, correct, kl_n, kl_sum, same_top, shown.budget, shown.start_size, recent_share, scorer
    FROM documents JOIN shown USING (setting, policy, length)
    WHERE paired
)
SELECT setting, sums.policy, length, document, sums.n, sums.nll_sum, sums.correct, sums.kl_n, sums.kl_sum, sums.same_top,
    control.n AS full_n, control.nll_sum AS full_nll_sum, control.correct AS full_correct, true AS paired
FROM sums
JOIN (SELECT * FROM sums WHERE scorer = 'random') AS control USING (setting, length, document, budget, start_size, recent_share)
WHERE sums.scorer <> 'random'
ORDER BY setting, length, policy, document
