-- How does each policy do on each document beside the best policy of its budget, on the longest texts?
-- The best one's sums stand where `documents` has full's, so that the same paired intervals can be made of them.
WITH shown AS (
    SELECT setting, policy, budget, length, row_number() OVER (PARTITION BY setting, budget ORDER BY ppl_ratio, policy) = 1 AS best
    FROM perplexity
    WHERE longest AND in_focus AND budget IS NOT NULL AND evicts AND ppl_ratio IS NOT NULL
), sums AS (
    SELECT setting, policy, length, document, n, nll_sum, correct, kl_n, kl_sum, same_top, budget, best FROM documents JOIN shown USING (setting, policy, length, budget)
    WHERE paired
)
SELECT sums.* EXCLUDE (best), best.n AS full_n, best.nll_sum AS full_nll_sum, best.correct AS full_correct, true AS paired
FROM sums
JOIN (SELECT * FROM sums WHERE best) AS best USING (setting, budget, length, document)
WHERE NOT sums.best
ORDER BY setting, length, policy, document
