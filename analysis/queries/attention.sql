-- On which layers and heads does the full cache attend to tokens that a policy has evicted?
-- The share of full's attention, mean over sampled tokens and documents; layers and heads count from 0.
WITH runs AS (
    SELECT setting, policy, series, budget, document, attention_loss FROM cells
    WHERE in_focus AND attention_loss IS NOT NULL
    QUALIFY turn = min(turn) OVER (PARTITION BY setting, policy, document)
), of_layers AS (
    SELECT * EXCLUDE (attention_loss), unnest(generate_series(0, len(attention_loss) - 1)) AS layer, unnest(attention_loss) AS heads
    FROM runs
), of_heads AS (
    SELECT * EXCLUDE (heads), unnest(generate_series(0, len(heads) - 1)) AS head, unnest(heads) AS lost FROM of_layers
), means AS (  -- added up in order, as else their last digits differ from run to run
    SELECT setting, budget, series, policy, layer::INTEGER AS layer, head::INTEGER AS head,
        100 * sum(lost ORDER BY document) / count(*) AS lost_percent, count(*) AS documents
    FROM of_heads
    GROUP BY ALL
), policies AS (
    SELECT setting, policy, sum(lost_percent ORDER BY layer, head) / count(*) AS mean_percent FROM means GROUP BY setting, policy
)
SELECT means.*, mean_percent, max(lost_percent) OVER (PARTITION BY setting) AS highest_percent
FROM means
JOIN policies USING (setting, policy)
ORDER BY setting, budget, mean_percent, policy, layer, head
