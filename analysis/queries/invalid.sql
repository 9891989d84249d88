-- In which runs did a token's loss, or its KL from full, come out as NaN or infinite?
SELECT setting, policy, document, sum(pieces.invalid)::BIGINT AS invalid, min(first_invalid) AS first_position
FROM pieces
JOIN cells USING (cell)
WHERE pieces.invalid > 0
GROUP BY ALL
ORDER BY setting, policy, document
