-- Which answers of each run are right: of which was every token the most likely one?
WITH asked AS (
    SELECT cell, unnest(answers) AS answer FROM cells WHERE coalesce(every, 1) = 1
), places AS (
    SELECT cell, answer[1] AS first, answer[3] AS distance,
        unnest(generate_series(answer[1], answer[1] + answer[2] - 1))::INTEGER AS position
    FROM asked
)
SELECT cell, first, distance, bool_and(correct) AS recalled,
    count(*) FILTER (isfinite(nll_nats)) AS n,
    coalesce(fsum(nll_nats::DOUBLE) FILTER (isfinite(nll_nats)), 0) AS nll_sum
FROM tokens
JOIN places USING (cell, position)
GROUP BY cell, first, distance
