-- Which share of a policy's tokens is at least so many nats from the full cache?
WITH totals AS (
    SELECT setting, policy, sum(n) AS tokens, min(size) AS least, max(size) AS most FROM diverged GROUP BY setting, policy
), sizes AS (
    SELECT setting, policy, tokens, unnest(generate_series(greatest(least, -24), most))::INTEGER AS size FROM totals
)
SELECT sizes.setting, divergence.budget, divergence.series, sizes.policy, pow(10, sizes.size / 8) AS kl_nats,
    100.0 * sum(diverged.n) / any_value(sizes.tokens) AS share_percent, sum(diverged.n)::BIGINT AS n
FROM sizes
JOIN divergence USING (setting, policy)
JOIN diverged ON diverged.setting = sizes.setting AND diverged.policy = sizes.policy AND diverged.size >= sizes.size
JOIN focus ON focus.setting = sizes.setting AND focus.policy = sizes.policy AND usual_ends
WHERE divergence.budget IS NOT NULL
GROUP BY ALL
ORDER BY setting, budget, series, policy, kl_nats
