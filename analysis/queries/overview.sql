-- What was measured: how many cells, documents and tokens, on which models, texts and devices?
SELECT
    (SELECT count(*) FROM cells) AS cells,
    (SELECT count(DISTINCT (text, document)) FROM cells) AS documents,
    (SELECT sum(tokens - 1)::BIGINT FROM cells) AS tokens,
    (SELECT count(*) FROM tokens WHERE nll_nats IS NULL OR NOT isfinite(nll_nats)) AS invalid,
    (SELECT list(DISTINCT model ORDER BY model) FROM cells) AS models,
    (SELECT list(DISTINCT text ORDER BY text) FROM cells) AS texts,
    (SELECT list(DISTINCT device ORDER BY device) FROM cells) AS devices,
    (SELECT list(DISTINCT dtype ORDER BY dtype) FROM cells) AS dtypes,
    -- Smaller models first, by the KV bytes that a token takes.
    (SELECT list(setting ORDER BY size, setting)
        FROM (SELECT setting, min(kv_bytes_full / tokens) AS size FROM cells GROUP BY setting)) AS settings,
    (SELECT list(DISTINCT length ORDER BY length DESC) FROM prefixes) AS lengths,
    (SELECT list(DISTINCT variant ORDER BY variant) FROM cells WHERE in_focus AND policy_name <> 'full') AS focus,
    (SELECT list(DISTINCT document ORDER BY document) FROM cells) AS document_names,
    (SELECT count(*) - count(DISTINCT (setting, policy, document)) FROM cells) AS repeats
