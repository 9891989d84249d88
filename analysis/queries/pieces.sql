-- What do loss and correct guesses add up to in each short piece of each run?
-- The one pass over all tokens; what follows adds up pieces. None crosses a bin's edge, nor the end of a prefix that is
-- reported: prefix counts the reported lengths that end before the piece.
WITH runs AS (
    SELECT cell, setting, max(tokens) OVER (PARTITION BY setting) AS longest,
        greatest(64, (2 ** ceil(log2(longest / 64)))::BIGINT) AS width
    FROM cells
), asked AS (
    SELECT DISTINCT setting, unnest(lengths) AS length FROM cells
), places AS (
    SELECT setting, spot::INTEGER AS position, spot // width AS bin,
        (SELECT count(*) FROM asked WHERE asked.setting = spans.setting AND length <= spot) AS prefix
    FROM (SELECT DISTINCT setting, width, longest FROM runs) AS spans, unnest(generate_series(1, longest - 1)) AS spots(spot)
)
SELECT cell, width, bin, prefix,
    count(*) FILTER (isfinite(nll_nats)) AS n,
    coalesce(fsum(nll_nats::DOUBLE) FILTER (isfinite(nll_nats)), 0) AS nll_sum,
    count(*) FILTER (isfinite(nll_nats) AND correct) AS correct,
    count(*) FILTER (nll_nats IS NULL OR NOT isfinite(nll_nats)) AS invalid,
    min(position) FILTER (nll_nats IS NULL OR NOT isfinite(nll_nats)) AS first_invalid
FROM tokens
JOIN runs USING (cell)
JOIN places USING (setting, position)
GROUP BY cell, width, bin, prefix
