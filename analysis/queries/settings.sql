-- What is each cell's setting called: its model, and whatever else sets cells apart that must not be mixed?
--
-- Of latency that is also whether --compiled was asked, which not every cell gains by: a sweep's cells stay together.
WITH every AS (
    SELECT cell, model, text, dtype, device, NULL AS threads, NULL AS hardware, NULL AS compiled FROM commits
    UNION ALL
    SELECT latency_commits.cell, model, NULL, dtype, device, threads, nullif(value, 'None'), coalesce(compiled, false)
    FROM latency_commits
    LEFT JOIN environment ON environment.cell = latency_commits.cell
        AND name = CASE WHEN device = 'cpu' THEN 'cpu' ELSE 'gpu' END
)
SELECT cell, hardware,
    CASE WHEN (SELECT count(DISTINCT model) = count(DISTINCT split_part(model, '/', -1)) FROM every)
            THEN split_part(model, '/', -1) ELSE model END
        || CASE WHEN text IS NOT NULL AND (SELECT count(DISTINCT text) FROM every) > 1 THEN ' · ' || text ELSE '' END
        || CASE WHEN (SELECT count(DISTINCT dtype) FROM every) > 1 THEN ' · ' || dtype ELSE '' END
        || CASE WHEN (SELECT count(DISTINCT device) FROM every) > 1 THEN ' · ' || device ELSE '' END
        || CASE WHEN threads IS NOT NULL AND (SELECT count(DISTINCT threads) FROM every) > 1
            THEN ' · ' || threads || CASE WHEN threads = 1 THEN ' thread' ELSE ' threads' END ELSE '' END
        || CASE WHEN hardware IS NOT NULL AND (SELECT count(DISTINCT hardware) FROM every) > 1
            THEN ' · ' || hardware ELSE '' END
        || CASE WHEN compiled IS NOT NULL AND (SELECT count(DISTINCT compiled) FROM every) > 1
            THEN CASE WHEN compiled THEN ' · --compiled' ELSE ' · --no-compiled' END ELSE '' END AS setting
FROM every
