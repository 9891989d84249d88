-- What did each contender take in each round, beside full and beside the twin without eviction that keeps as many keys?
WITH taken AS (
    SELECT cell, policy AS label, phase, round, fsum(seconds) / count(*) AS seconds
    FROM samples
    SEMI JOIN latency_cells USING (cell)
    GROUP BY ALL
), roles AS (
    SELECT taken.*, role FROM taken JOIN contenders USING (cell, label)
), twins AS (  -- policies that keep as many keys share one; older records have one for each policy
    SELECT policies.cell, policies.label, twins.label AS twin_label
    FROM contenders AS policies
    JOIN contenders AS twins ON twins.cell = policies.cell AND twins.kv_bytes = policies.kv_bytes
    WHERE policies.role = 'policy' AND twins.role = 'without eviction'
    QUALIFY row_number() OVER (PARTITION BY policies.cell, policies.label ORDER BY twins."of" = policies.label DESC, twins.label) = 1
)
SELECT roles.*, roles.seconds / full_cache.seconds AS full_ratio, roles.seconds / twin.seconds AS twin_ratio
FROM roles
LEFT JOIN (SELECT * FROM taken WHERE label = 'full') AS full_cache USING (cell, phase, round)
LEFT JOIN twins ON twins.cell = roles.cell AND twins.label = roles.label
LEFT JOIN taken AS twin ON twin.cell = roles.cell AND twin.phase = roles.phase AND twin.round = roles.round
    AND twin.label = twin_label
ORDER BY roles.cell, roles.phase, roles.label, roles.round
