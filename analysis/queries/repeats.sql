-- Where a text repeats itself, what does each policy lose by the distance to the last time, beside full on the same tokens?
--
-- `repeated` says which tokens those are. Of fewer than thirty nothing is said: only from there on is a loss of half a nat three
-- times its own standard error, as losses on single tokens differ by about a nat.
WITH runs AS (
    SELECT cell, setting, policy, policy_name, series, budget, document, evicts_after < tokens AS evicts
    FROM cells
    WHERE in_focus AND usual_ends AND turn = 1
), binned AS (
    SELECT setting, policy, policy_name, series, budget, document, evicts, distance, sum(pieces.n)::BIGINT AS n, fsum(pieces.nll_sum) AS nll_sum
    FROM pieces
    JOIN runs USING (cell)
    WHERE distance IS NOT NULL AND pieces.n > 0
    GROUP BY ALL
)
SELECT setting, binned.budget, binned.series, binned.policy, distance,
    sum(binned.n)::BIGINT AS scored,
    fsum(binned.nll_sum) / scored AS nll_nats,
    fsum(full_cache.nll_sum) / sum(full_cache.n) AS full_nll_nats,
    nll_nats - full_nll_nats AS extra_nats
FROM binned
JOIN (SELECT * FROM binned WHERE policy_name = 'full') AS full_cache USING (setting, document, distance)
WHERE binned.policy_name <> 'full' AND coalesce(binned.evicts, true) AND binned.n = full_cache.n  -- else of other tokens
GROUP BY ALL
HAVING scored >= 30
ORDER BY setting, budget, series, binned.policy, distance
