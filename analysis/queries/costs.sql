-- What does each policy cost by the metric that cards, answer and trade-off go by (`--quality-metric`)?
--
-- ppl: change of corpus perplexity against full, in %. kl: mean KL from full, in hundredths of a nat; a loss higher by as
-- much is as many per cent of perplexity. top1: tokens, in %, whose most likely token is not full's.
SELECT perplexity.*, metric,
    CASE metric WHEN 'ppl' THEN ppl_change_percent WHEN 'kl' THEN 100 * kl_nats ELSE 100 - same_top_percent END AS cost,
    CASE metric WHEN 'ppl' THEN ppl_change_low_percent WHEN 'kl' THEN 100 * kl_nats_low ELSE 100 - same_top_high_percent END AS cost_low,
    CASE metric WHEN 'ppl' THEN ppl_change_high_percent WHEN 'kl' THEN 100 * kl_nats_high ELSE 100 - same_top_low_percent END AS cost_high
FROM perplexity, (SELECT getvariable('quality_metric') AS metric)
