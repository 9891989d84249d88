-- How far over full's is each policy's loss on each document at the longest length, and at the first at which it evicts?
-- The latter's sums stand where `documents` has full's, so that the same paired intervals can be made of them.
WITH sums AS (
    SELECT setting, policy, length, document, n, nll_sum - n * full_nll_sum / full_n AS nll_sum, correct, kl_n, kl_sum, same_top
    FROM documents
    JOIN (SELECT setting, policy, length FROM perplexity
        WHERE policy_name <> 'full' AND in_focus AND usual_ends AND evicts AND ppl_ratio IS NOT NULL) USING (setting, policy, length)
    WHERE paired
    WINDOW run AS (PARTITION BY setting, policy)
    QUALIFY length IN (min(length) OVER run, max(length) OVER run)
)
SELECT later.*, sooner.n AS full_n, sooner.nll_sum AS full_nll_sum, sooner.correct AS full_correct, true AS paired
FROM sums AS later
JOIN sums AS sooner ON sooner.setting = later.setting AND sooner.policy = later.policy AND sooner.document = later.document
    AND sooner.length < later.length
ORDER BY later.setting, later.length, later.policy, later.document
