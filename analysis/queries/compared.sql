-- Which run tells how far a policy's predictions are from full's, on each document?
-- Of the longest texts alone.
SELECT cell, setting, policy, series, budget, skip_layers, document, worst
FROM cells
WHERE in_focus AND metrics = 'kl' AND policy_name <> 'full'
QUALIFY tokens = max(tokens) OVER (PARTITION BY setting)
    AND row_number() OVER (PARTITION BY setting, policy, document ORDER BY planned DESC, tokens DESC, written_at DESC, cell) = 1
