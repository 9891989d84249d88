-- Of runs that score a sample of their text's tokens alone: what does full lose on just these, within the first L tokens?
WITH asked AS (
    SELECT DISTINCT setting, unnest(lengths) AS length FROM cells
), samples AS (
    SELECT cell, setting, document, every FROM cells WHERE every > 1
), full_runs AS (  -- those that `documents` takes
    SELECT cells.setting, document, cell, length FROM cells
    JOIN asked ON asked.setting = cells.setting AND length <= tokens
    WHERE policy_name = 'full'
    QUALIFY turn = min(turn) OVER (PARTITION BY cells.setting, document, length)
), sums AS (
    SELECT samples.cell, length, own.position, full_tokens.nll_nats, full_tokens.correct
    FROM samples
    JOIN full_runs USING (setting, document)
    JOIN tokens AS own ON own.cell = samples.cell AND own.position < length AND isfinite(own.nll_nats)
    JOIN tokens AS full_tokens ON full_tokens.cell = full_runs.cell AND full_tokens.position = own.position
)
SELECT cell, length,
    count(*) FILTER (isfinite(nll_nats)) AS n,
    coalesce(fsum(nll_nats::DOUBLE) FILTER (isfinite(nll_nats)), 0) AS nll_sum,
    count(*) FILTER (isfinite(nll_nats) AND correct) AS correct
FROM sums
GROUP BY cell, length
