-- How far over full's is each policy's loss on each document between the last two lengths, and the first two after it has begun to evict?
-- The latter's sums stand where `documents` has full's, so that the same paired intervals can be made of them.
WITH sums AS (
    SELECT setting, policy, length, document, n, nll_sum - n * full_nll_sum / full_n AS nll_sum, correct, kl_n, kl_sum, same_top
    FROM stretches
    WHERE since >= evicts_after
    WINDOW run AS (PARTITION BY setting, policy)
    QUALIFY length IN (min(length) OVER run, max(length) OVER run)
)
SELECT later.*, sooner.n AS full_n, sooner.nll_sum AS full_nll_sum, sooner.correct AS full_correct, true AS paired
FROM sums AS later
JOIN sums AS sooner ON sooner.setting = later.setting AND sooner.policy = later.policy AND sooner.document = later.document
    AND sooner.length < later.length
ORDER BY later.setting, later.length, later.policy, later.document
