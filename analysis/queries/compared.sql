-- Which run tells how far a policy's predictions are from full's, on each document?
-- Those that `documents` takes for the length that most policies reach, where the policy evicts by then. Of longer ones the
-- first tokens count.
WITH runs AS (
    SELECT * FROM cells
    JOIN compared_at USING (setting)
    WHERE tokens >= compared_at
    QUALIFY turn = min(turn) OVER (PARTITION BY setting, policy, document)
)
SELECT cell, setting, policy, series, budget, evicts_after, skip_layers, document, tokens, worst, compared_at
FROM runs
WHERE in_focus AND metrics = 'kl' AND policy_name <> 'full' AND coalesce(evicts_after < compared_at, true)
