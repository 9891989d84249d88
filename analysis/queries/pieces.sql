-- What do loss, correct guesses and divergence from full add up to in each short piece of each run?
-- The one pass over all tokens; what follows adds up pieces. None crosses a bin's edge, nor the end of a prefix that is
-- reported: prefix counts the reported lengths that end before the piece. Runs and settings go by numbers here, as
-- comparing names takes twice the time for millions of tokens. Each token has its run and spot: only left joins, which DuckDB
-- leaves in their order, as it would else join those two first and look each token up among millions. distance: of tokens that
-- repeat a stretch of their text.
WITH runs AS (
    SELECT cells.cell, setting, number, max(tokens) OVER (PARTITION BY setting) AS longest,
        greatest(64, (2 ** ceil(log2(longest / 64)))::BIGINT) AS width,
        row_number() OVER ()::INTEGER AS run,
        dense_rank() OVER (ORDER BY setting)::INTEGER AS place
    FROM cells
    LEFT JOIN texts USING (setting, document)
), asked AS (
    SELECT DISTINCT setting, unnest(lengths) AS length FROM cells
), spots AS (
    SELECT place, spot::INTEGER AS position, spot // width AS bin,
        (SELECT count(*) FROM asked WHERE asked.setting = spans.setting AND length <= spot) AS prefix
    FROM (SELECT DISTINCT setting, place, width, longest FROM runs) AS spans,
        unnest(generate_series(1, longest - 1)) AS spots(spot)
), sums AS (
    SELECT run, bin, prefix, distance,
        count(*) FILTER (isfinite(nll_nats)) AS n,
        coalesce(fsum(nll_nats::DOUBLE) FILTER (isfinite(nll_nats)), 0) AS nll_sum,
        count(*) FILTER (isfinite(nll_nats) AND correct) AS correct,
        count(*) FILTER (nll_nats IS NULL OR NOT isfinite(nll_nats) OR NOT isfinite(kl_nats)) AS invalid,
        min(position) FILTER (nll_nats IS NULL OR NOT isfinite(nll_nats) OR NOT isfinite(kl_nats)) AS first_invalid,
        count(*) FILTER (isfinite(kl_nats)) AS kl_n,
        coalesce(fsum(kl_nats::DOUBLE) FILTER (isfinite(kl_nats)), 0) AS kl_sum,
        count(*) FILTER (isfinite(kl_nats) AND same_top) AS same_top,
        count(*) FILTER (isfinite(kl_nats) AND kl_nats > 0.1) AS far
    FROM tokens
    LEFT JOIN runs USING (cell)
    LEFT JOIN spots USING (place, position)
    LEFT JOIN repeated USING (number, position)
    GROUP BY run, bin, prefix, distance
)
SELECT cell, width, sums.* EXCLUDE (run)
FROM sums
JOIN runs USING (run)
