-- What does each part of a long text cost: its loss, its pace, and the memory it takes beyond the model?
-- low and high: the least and the most over the bins of a part. A bin belongs to the part that it begins in.
WITH ends AS (
    SELECT cell, setting, policy, document, trained_context, tokens, kv_bytes, unnest(parts) AS part
    FROM cells
), spans AS (
    SELECT * EXCLUDE (part), part.tokens AS until, coalesce(lag(part.tokens) OVER run, 0) AS since,
        part.seconds AS seconds, part.peak_bytes AS peak_bytes
    FROM ends
    WINDOW run AS (PARTITION BY cell ORDER BY part.tokens)
), bins AS (
    SELECT cell, bin * width AS begins, width, sum(n)::BIGINT AS n, fsum(nll_sum) AS nll_sum
    FROM pieces
    WHERE n > 0
    GROUP BY cell, bin, width
)
SELECT setting, policy, document, since, until, tokens, trained_context, width,
    sum(n)::BIGINT AS n, fsum(nll_sum) / sum(n) AS nll_nats, min(nll_sum / n) AS nll_nats_low, max(nll_sum / n) AS nll_nats_high,
    (until - since) / any_value(seconds) AS tokens_per_s, any_value(peak_bytes) / 1e6 AS peak_mb, any_value(kv_bytes) / 1e6 AS kv_mb
FROM spans
JOIN bins ON bins.cell = spans.cell AND begins >= since AND begins < until
GROUP BY spans.cell, setting, policy, document, since, until, tokens, trained_context, width
ORDER BY setting, policy, document, since
