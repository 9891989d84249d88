-- In which runs did a token's loss come out as NaN or infinite?
SELECT setting, policy, cells.document, count(*) AS invalid, min(position) AS first_position
FROM tokens
JOIN cells USING (cell)
WHERE nll_nats IS NULL OR NOT isfinite(nll_nats)
GROUP BY ALL
ORDER BY setting, policy, cells.document
