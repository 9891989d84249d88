-- What does each policy lose along a text on which no full cache was run, such as a stream beyond the trained context?
WITH runs AS (
    SELECT cell, setting, policy, document, budget, trained_context, tokens,
        series || CASE WHEN variant = 'cache' THEN '' ELSE ', ' || variant END AS series
    FROM cells
    WHERE every IS NULL AND evicts_after < tokens AND usual_ends
        AND (setting, document) NOT IN (SELECT (setting, document) FROM cells WHERE policy_name = 'full')
    QUALIFY turn = min(turn) OVER (PARTITION BY setting, policy, document)
)
SELECT setting, budget, series, policy, least(bin * width + width // 2, max(tokens)) AS position,
    fsum(nll_sum) / sum(n) AS nll_nats, width, trained_context
FROM runs
JOIN pieces USING (cell)
WHERE n > 0
GROUP BY setting, budget, series, policy, bin, width, trained_context
ORDER BY setting, budget, series, policy, position
