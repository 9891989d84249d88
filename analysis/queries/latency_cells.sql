-- Which latency cell counts for each setting, context and batch, if there are several?
SELECT latency_commits.*, setting, hardware
FROM latency_commits
JOIN settings USING (cell)
QUALIFY row_number() OVER (PARTITION BY setting, context, batch ORDER BY planned DESC, rounds DESC, written_at DESC, cell) = 1
