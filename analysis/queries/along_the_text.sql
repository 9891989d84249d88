-- Where in the text does a policy lose: what is its loss along the sequence, and how much of it is over full's?
WITH runs AS (
    SELECT cell, setting, policy, series, budget, evicts_after, document, trained_context, tokens
    FROM cells
    WHERE in_focus AND usual_ends AND turn = 1
), binned AS (
    SELECT setting, policy, series, budget, evicts_after, document, trained_context, width, bin, sum(pieces.n) AS n,
        fsum(pieces.nll_sum) AS nll_sum
    FROM pieces
    JOIN runs USING (cell)
    WHERE pieces.n > 0
    GROUP BY ALL
), paired AS (
    SELECT binned.setting, binned.policy, binned.series, binned.budget, binned.evicts_after, binned.trained_context, binned.width, binned.bin,
        sum(binned.n)::DOUBLE AS n, fsum(binned.nll_sum) AS nll_sum,
        sum(full_cache.n)::DOUBLE AS full_n, fsum(full_cache.nll_sum) AS full_nll_sum
    FROM binned
    JOIN (SELECT * FROM binned WHERE policy = 'full') AS full_cache USING (setting, document, bin)
    WHERE binned.n = full_cache.n
    GROUP BY ALL
), budgets AS (
    SELECT setting, budget FROM runs WHERE budget IS NOT NULL GROUP BY setting, budget HAVING min(evicts_after) < max(tokens)
), shown AS (
    SELECT paired.* EXCLUDE (budget, evicts_after), budgets.budget, coalesce(evicts_after, budgets.budget) AS evicts_after
    FROM paired
    JOIN budgets ON budgets.setting = paired.setting AND (paired.budget = budgets.budget OR policy = 'full')
), smoothed AS (  -- each point averages its bin and two on either side, never across the point where eviction begins
    SELECT setting, policy, series, budget, trained_context, width, bin,
        least(bin * width + width // 2, (SELECT max(tokens) FROM runs WHERE runs.setting = shown.setting)) AS position,
        sum(nll_sum) OVER around / sum(n) OVER around AS nll_nats,
        sum(nll_sum) OVER around / sum(n) OVER around - sum(full_nll_sum) OVER around / sum(full_n) OVER around
            AS excess_nats
    FROM shown
    WINDOW around AS (PARTITION BY setting, policy, budget, bin * width >= evicts_after ORDER BY bin ROWS BETWEEN 2 PRECEDING AND 2 FOLLOWING)
)
SELECT setting, budget, series, policy, position, nll_nats, excess_nats,
    width, trained_context
FROM smoothed
ORDER BY setting, budget, series, position
