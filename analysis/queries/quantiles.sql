-- Which KL do half, 99 and 99.9 per cent of each policy's tokens stay below?
-- Policies go by numbers here, as comparing names takes longer for millions of tokens.
WITH places AS (
    SELECT cell, compared_at, dense_rank() OVER (ORDER BY setting, policy)::INTEGER AS place FROM compared
), found AS (
    SELECT place, count(*) AS kl_tokens, quantile_cont(kl_nats, [0.5, 0.99, 0.999]) AS ends, max(kl_nats)::DOUBLE AS kl_max_nats
    FROM (SELECT place, kl_nats::DOUBLE AS kl_nats FROM tokens JOIN places USING (cell) WHERE isfinite(kl_nats) AND position < compared_at)
    GROUP BY place
)
SELECT DISTINCT setting, policy, kl_tokens, ends, kl_max_nats
FROM found
JOIN places USING (place)
JOIN compared USING (cell)
