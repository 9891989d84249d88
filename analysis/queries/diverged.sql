-- How many tokens of each policy have a KL of each size?
-- A size is an eighth of a power of ten, those without any KL have none.
WITH sizes AS (
    SELECT setting, policy, CASE WHEN kl_nats > 0 THEN floor(8 * log10(kl_nats::DOUBLE))::INTEGER END AS size, count(*) AS n
    FROM tokens
    JOIN compared USING (cell)
    WHERE isfinite(kl_nats) AND position < compared_at
    GROUP BY setting, policy, size
)
SELECT setting, policy, size, n
FROM sizes
