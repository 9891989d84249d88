-- How far back does each policy recall: what share of answers is right, by the distance to the fact that holds them?
--
-- An answer is right if each of its tokens was the most likely one, given the question and the tokens before it. Full's are
-- counted on the same answers, and stand beside the policies of each budget. Between `low` and `high` is Wilson's 95 % interval,
-- for answers that do not depend on one another.
--
-- full_recalls: full is measurably right in more than a tenth of the answers. That is no luck, as five digits are next to never
-- guessed; and of less, over some fifty answers, a policy that recalls none at all could hardly be told from full.
WITH runs AS (
    SELECT cell, setting, policy, policy_name, series, budget, document, evicts_after, evicts_after < tokens AS evicts
    FROM cells
    WHERE in_focus AND usual_ends AND answers IS NOT NULL
    QUALIFY turn = min(turn) OVER (PARTITION BY setting, policy, document)
), given AS (
    SELECT runs.* EXCLUDE (cell), answered.* EXCLUDE (cell)
    FROM answered
    JOIN runs USING (cell)
    WHERE policy_name = 'full' OR coalesce(evicts, true)
), panels AS (  -- full alone has one, too
    SELECT DISTINCT setting, budget FROM given WHERE policy_name <> 'full'
    UNION ALL
    SELECT setting, NULL FROM given GROUP BY setting HAVING bool_and(policy_name = 'full')
), counts AS (
    SELECT setting, panels.budget, given.evicts_after, given.series, given.policy, distance,
        count(*) AS answers,
        count(*) FILTER (given.recalled) AS recalled,
        count(*) FILTER (full_cache.recalled) AS full_recalled,
        fsum(given.nll_sum) / nullif(sum(given.n), 0) AS nll_nats
    FROM given
    JOIN (SELECT * FROM given WHERE policy_name = 'full') AS full_cache USING (setting, document, first, distance)
    JOIN panels USING (setting)
    WHERE given.policy_name = 'full' OR given.budget IS NOT DISTINCT FROM panels.budget
    GROUP BY ALL
), intervals AS (
    SELECT *, recalled / answers AS share, 1.959964 ** 2 / answers AS z2,
        sqrt(z2 * (share * (1 - share) + z2 / 4)) AS half,
        greatest(0, (share + z2 / 2 - half) / (1 + z2)) AS low,
        least(1, (share + z2 / 2 + half) / (1 + z2)) AS high
    FROM counts
)
SELECT setting, budget, evicts_after, series, policy, distance, answers, recalled, full_recalled, nll_nats,
    100 * share AS recalled_percent,
    100 * low AS recalled_low_percent,
    100 * high AS recalled_high_percent,
    coalesce(max(low) FILTER (policy = 'full') OVER (PARTITION BY setting, budget, distance) > 0.1, false) AS full_recalls
FROM intervals
ORDER BY setting, budget, series, policy, distance
