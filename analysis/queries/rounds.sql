-- What did each contender take in each round, beside full and beside its own twin without eviction in the same round?
WITH taken AS (
    SELECT cell, policy AS label, phase, round, fsum(seconds) / count(*) AS seconds
    FROM samples
    SEMI JOIN latency_cells USING (cell)
    GROUP BY ALL
), roles AS (
    SELECT taken.*, role, "of" FROM taken JOIN contenders USING (cell, label)
)
SELECT roles.*, roles.seconds / full_cache.seconds AS full_ratio, roles.seconds / twin.seconds AS twin_ratio
FROM roles
LEFT JOIN (SELECT * FROM taken WHERE label = 'full') AS full_cache USING (cell, phase, round)
LEFT JOIN (SELECT * FROM roles WHERE role = 'without eviction') AS twin ON twin.cell = roles.cell AND twin.phase = roles.phase
    AND twin.round = roles.round AND twin."of" = roles.label AND roles.role = 'policy'
ORDER BY cell, phase, label, round
