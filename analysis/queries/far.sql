-- Where in the text lie the tokens at which a policy is more than a tenth of a nat from the full cache?
WITH runs AS (
    SELECT setting, compared_at AS tokens, max(trained_context) AS trained_context,
        (SELECT count(DISTINCT length) FROM (SELECT setting, unnest(lengths) AS length FROM cells) AS asked
            WHERE asked.setting = cells.setting AND length < compared_at) AS prefix  -- as `pieces` counts them
    FROM cells
    JOIN compared_at USING (setting)
    GROUP BY ALL
), binned AS (
    SELECT setting, policy, series, budget, evicts_after, width, bin, sum(pieces.kl_n)::BIGINT AS n, sum(far)::BIGINT AS far
    FROM pieces
    JOIN (SELECT cell, setting, policy, series, budget, evicts_after FROM compared) USING (cell)
    JOIN runs USING (setting)
    WHERE pieces.prefix <= runs.prefix
    GROUP BY ALL
)
SELECT binned.setting, binned.budget, binned.series, binned.policy,
    least(bin * width + width // 2, runs.tokens) AS position,
    -- Each point averages its bin and two on either side, never across the point where eviction begins.
    100.0 * sum(far) OVER around / sum(n) OVER around AS far_percent,
    width, runs.trained_context
FROM binned
JOIN runs USING (setting)
JOIN focus ON focus.setting = binned.setting AND focus.policy = binned.policy AND usual_ends
WHERE n > 0 AND evicts_after < runs.tokens
WINDOW around AS (PARTITION BY binned.setting, binned.policy, bin * width >= evicts_after ORDER BY bin ROWS BETWEEN 2 PRECEDING AND 2 FOLLOWING)
ORDER BY setting, budget, series, position
