-- What was measured: how many cells, documents, tokens and samples, on which models, texts and devices?
WITH places AS (
    SELECT setting, model, device, dtype, kv_bytes_full / tokens AS size FROM cells
    UNION ALL
    SELECT setting, model, device, dtype, 1e6 * kv_mb / context / batch FROM latency WHERE contender = 'full'
)
SELECT
    (SELECT count(*) FROM cells) AS quality_cells,
    (SELECT count(*) FROM latency_commits) AS latency_cells,
    (SELECT count(*) FROM (SELECT cell FROM cells UNION ALL SELECT cell FROM latency_commits)) AS cells,
    (SELECT count(DISTINCT (text, document)) FROM cells) AS documents,
    (SELECT coalesce(sum((tokens - 1) // coalesce(every, 1)), 0)::BIGINT FROM cells) AS tokens,
    (SELECT count(*) FROM samples) AS samples,
    (SELECT coalesce(sum(invalid), 0)::BIGINT FROM pieces) AS invalid,
    -- Smaller models first, by the KV bytes that a token takes.
    (SELECT list(model ORDER BY size, model)
        FROM (SELECT model, min(size) AS size FROM places GROUP BY model)) AS models,
    (SELECT coalesce(list(DISTINCT text ORDER BY text), []) FROM cells) AS texts,
    (SELECT list(DISTINCT device ORDER BY device) FROM places) AS devices,
    (SELECT list(DISTINCT dtype ORDER BY dtype) FROM places) AS dtypes,
    (SELECT list(setting ORDER BY size, setting)
        FROM (SELECT setting, min(size) AS size FROM places GROUP BY setting)) AS settings,
    (SELECT coalesce(list(DISTINCT length ORDER BY length DESC), []) FROM prefixes) AS lengths,
    (SELECT coalesce(list(DISTINCT context ORDER BY context DESC), []) FROM latency) AS contexts,
    (SELECT coalesce(list(DISTINCT threads ORDER BY threads), []) FROM latency) AS threads,
    (SELECT coalesce(list(DISTINCT (prefills, rounds, steps) ORDER BY (prefills, rounds, steps)), []) FROM latency_cells) AS protocols,
    (SELECT coalesce(list(DISTINCT variant ORDER BY variant), []) FROM cells WHERE in_focus AND policy_name <> 'full') AS focus,
    (SELECT coalesce(list(DISTINCT document ORDER BY document), []) FROM cells) AS document_names,
    (SELECT count(*) - count(DISTINCT (setting, policy, document)) FROM cells) AS repeats,
    (SELECT count(*) FROM latency_commits) - (SELECT count(*) FROM latency_cells) AS latency_repeats
