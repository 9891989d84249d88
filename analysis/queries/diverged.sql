-- How many tokens of each policy have a KL of each size?
-- A size is an eighth of a power of ten, those without any KL have none.
WITH sizes AS (
    SELECT cell, CASE WHEN kl_nats > 0 THEN floor(8 * log10(kl_nats::DOUBLE))::INTEGER END AS size, count(*) AS n
    FROM tokens
    WHERE isfinite(kl_nats)
    GROUP BY cell, size
)
SELECT setting, policy, size, sum(n)::BIGINT AS n
FROM sizes
JOIN compared USING (cell)
GROUP BY ALL
