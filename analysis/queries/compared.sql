-- Which run tells how far a policy's predictions are from full's, on each document?
-- Of the runs that `documents` takes, of the length that most policies reach, where the policy evicts.
WITH runs AS (
    SELECT * FROM cells
    WHERE tokens = (SELECT compared_at FROM compared_at WHERE compared_at.setting = cells.setting)
    QUALIFY row_number() OVER (PARTITION BY setting, policy, document ORDER BY planned DESC, tokens DESC, written_at DESC, cell) = 1
)
SELECT cell, setting, policy, series, budget, skip_layers, document, worst
FROM runs
WHERE in_focus AND metrics = 'kl' AND policy_name <> 'full' AND coalesce(coalesce(evicts_after, budget) < tokens, true)
