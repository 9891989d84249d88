-- Which KL do half, 99 and 99.9 per cent of each policy's tokens stay below?
SELECT setting, policy, count(*) AS kl_tokens,
    quantile_cont(kl_nats::DOUBLE, [0.5, 0.99, 0.999]) AS ends,
    max(kl_nats)::DOUBLE AS kl_max_nats
FROM tokens
JOIN compared USING (cell)
WHERE isfinite(kl_nats)
GROUP BY setting, policy
