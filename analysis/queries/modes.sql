-- How does each way of numbering a policy's keys do on each document beside “cache”, on the longest texts?
-- Those sums of “cache” stand where `documents` has full's, so that the same paired intervals can be made of them.
WITH shown AS (
    SELECT setting, base, variant, policy, length
    FROM perplexity
    WHERE longest AND policy_name <> 'full' AND ppl_ratio IS NOT NULL
), sums AS (
    SELECT setting, base, variant, policy, length, document, n, nll_sum, correct, kl_n, kl_sum, same_top
    FROM documents
    JOIN shown USING (setting, base, variant, policy, length)
    WHERE paired
)
SELECT sums.*, own.n AS full_n, own.nll_sum AS full_nll_sum, own.correct AS full_correct, true AS paired
FROM sums
JOIN (SELECT * FROM sums WHERE variant = 'cache') AS own USING (setting, base, length, document)
WHERE sums.variant <> 'cache'
ORDER BY setting, length, policy, document
