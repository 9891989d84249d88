-- Does a policy stay close to the full cache as the text grows longer?
WITH budgets AS (
    SELECT DISTINCT setting, budget FROM main WHERE in_focus AND evicts AND budget IS NOT NULL
), lines AS (
    SELECT main.setting, budgets.budget, series, policy, length, ppl_corpus, ppl_placed, ppl_change_percent, trained_context
    FROM main
    JOIN budgets ON budgets.setting = main.setting AND (main.budget = budgets.budget OR main.policy_name = 'full')
    WHERE in_focus AND usual_sinks
)
SELECT *, length > trained_context AS beyond_trained_context
FROM lines
WHERE (SELECT count(DISTINCT length) FROM lines AS every WHERE every.setting = lines.setting) > 1
ORDER BY setting, budget, series, length
