-- What do loss and correct guesses add up to in each short piece of each run?
-- The one pass over all tokens; what follows adds up pieces. None crosses a bin's edge, nor the end of a prefix that is
-- reported: prefix counts the reported lengths that end before the piece. Runs and settings go by numbers here, as
-- comparing names takes twice the time for millions of tokens.
WITH runs AS (
    SELECT cell, setting, max(tokens) OVER (PARTITION BY setting) AS longest,
        greatest(64, (2 ** ceil(log2(longest / 64)))::BIGINT) AS width,
        row_number() OVER ()::INTEGER AS run,
        dense_rank() OVER (ORDER BY setting)::INTEGER AS place
    FROM cells
), asked AS (
    SELECT DISTINCT setting, unnest(lengths) AS length FROM cells
), spots AS (
    SELECT place, spot::INTEGER AS position, spot // width AS bin,
        (SELECT count(*) FROM asked WHERE asked.setting = spans.setting AND length <= spot) AS prefix
    FROM (SELECT DISTINCT setting, place, width, longest FROM runs) AS spans,
        unnest(generate_series(1, longest - 1)) AS spots(spot)
), sums AS (
    SELECT run, bin, prefix,
        count(*) FILTER (isfinite(nll_nats)) AS n,
        coalesce(fsum(nll_nats::DOUBLE) FILTER (isfinite(nll_nats)), 0) AS nll_sum,
        count(*) FILTER (isfinite(nll_nats) AND correct) AS correct,
        count(*) FILTER (nll_nats IS NULL OR NOT isfinite(nll_nats)) AS invalid,
        min(position) FILTER (nll_nats IS NULL OR NOT isfinite(nll_nats)) AS first_invalid
    FROM tokens
    JOIN runs USING (cell)
    JOIN spots USING (place, position)
    GROUP BY run, bin, prefix
)
SELECT cell, width, sums.* EXCLUDE (run)
FROM sums
JOIN runs USING (run)
