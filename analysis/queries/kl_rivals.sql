-- How far is each policy from the full cache on each document, beside the policy of its budget with the least mean KL?
-- Sums of KL stand where `documents` has losses, so that the same paired intervals can be made of them: exp(Δ KL) − 1.
WITH shown AS (
    SELECT setting, policy, budget, length, row_number() OVER (PARTITION BY setting, budget ORDER BY kl_nats, policy) = 1 AS least
    FROM perplexity
    WHERE longest AND in_focus AND budget IS NOT NULL AND evicts AND kl_nats IS NOT NULL
), sums AS (
    SELECT setting, policy, length, document, kl_n AS n, kl_sum AS nll_sum, correct, kl_n, kl_sum, same_top, budget, least
    FROM documents
    JOIN shown USING (setting, policy, length, budget)
    WHERE paired AND kl_n > 0
)
SELECT sums.* EXCLUDE (least), least.n AS full_n, least.nll_sum AS full_nll_sum, least.correct AS full_correct, true AS paired
FROM sums
JOIN (SELECT * FROM sums WHERE least) AS least USING (setting, budget, length, document)
WHERE NOT sums.least
ORDER BY setting, length, policy, document
