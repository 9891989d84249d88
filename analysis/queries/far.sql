-- Where in the text lie the tokens at which a policy is more than a nat from the full cache?
WITH binned AS (
    SELECT setting, policy, series, budget, width, bin, sum(pieces.kl_n)::BIGINT AS n, sum(far)::BIGINT AS far
    FROM pieces
    JOIN (SELECT cell, setting, policy, series, budget FROM compared) USING (cell)
    GROUP BY ALL
), runs AS (
    SELECT setting, max(tokens) AS tokens, max(trained_context) AS trained_context FROM cells GROUP BY setting
)
SELECT binned.setting, binned.budget, binned.series, binned.policy,
    least(bin * width + width // 2, runs.tokens) AS position,
    -- Each point averages its bin and two on either side, never across the point where the budget is full.
    100.0 * sum(far) OVER around / sum(n) OVER around AS far_percent,
    width, runs.trained_context
FROM binned
JOIN runs USING (setting)
JOIN focus ON focus.setting = binned.setting AND focus.policy = binned.policy AND usual_ends
WHERE n > 0 AND budget < runs.tokens
WINDOW around AS (PARTITION BY binned.setting, binned.policy, bin * width >= budget ORDER BY bin ROWS BETWEEN 2 PRECEDING AND 2 FOLLOWING)
ORDER BY setting, budget, series, position
