-- What do loss and correct guesses add up to within the first L tokens of each run?
WITH asked AS (
    SELECT DISTINCT setting, unnest(lengths) AS length FROM cells
), wanted AS (
    SELECT cell, length FROM cells JOIN asked USING (setting) WHERE length <= tokens
), pieces AS (  -- each token belongs to the shortest prefix that holds it
    SELECT wanted.cell, wanted.length,
        count(*) FILTER (isfinite(nll_nats)) AS n,
        coalesce(fsum(nll_nats::DOUBLE) FILTER (isfinite(nll_nats)), 0) AS nll_sum,
        count(*) FILTER (isfinite(nll_nats) AND correct) AS correct,
        count(*) FILTER (nll_nats IS NULL OR NOT isfinite(nll_nats)) AS invalid
    FROM tokens
    ASOF JOIN wanted ON tokens.cell = wanted.cell AND tokens.position < wanted.length
    GROUP BY wanted.cell, wanted.length
)
SELECT cell, length,
    (sum(n) OVER prefix)::BIGINT AS n,
    sum(nll_sum) OVER prefix AS nll_sum,
    (sum(correct) OVER prefix)::BIGINT AS correct,
    (sum(invalid) OVER prefix)::BIGINT AS invalid
FROM pieces
WINDOW prefix AS (PARTITION BY cell ORDER BY length)
