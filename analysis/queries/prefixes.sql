-- What do loss, correct guesses and divergence from full add up to within the first L tokens of each run?
WITH asked AS (
    SELECT *, row_number() OVER (PARTITION BY setting ORDER BY length) AS place
    FROM (SELECT DISTINCT setting, unnest(lengths) AS length FROM cells)
)
SELECT cells.cell, length,
    sum(n)::BIGINT AS n,
    fsum(nll_sum) AS nll_sum,
    sum(correct)::BIGINT AS correct,
    sum(invalid)::BIGINT AS invalid,
    sum(kl_n)::BIGINT AS kl_n,
    fsum(kl_sum) AS kl_sum,
    sum(same_top)::BIGINT AS same_top
FROM cells
JOIN asked ON asked.setting = cells.setting AND length <= tokens
JOIN pieces ON pieces.cell = cells.cell AND prefix < place
GROUP BY cells.cell, length
