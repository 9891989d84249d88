-- What is each finished quality cell: which setting, which series of policies, which variant of its positions?
-- turn: of several runs of a policy on a document the first counts, or the first of those that a question is about.
SELECT commits.* REPLACE (coalesce(evicts_after, commits.budget) AS evicts_after),
    setting, base, keep_ratio, policy_fields, recent_size, series, variant, in_focus, usual_ends,
    row_number() OVER (PARTITION BY setting, policy, document ORDER BY planned DESC, tokens DESC, written_at DESC, cell) AS turn
FROM commits
JOIN settings USING (cell)
JOIN policies USING (policy)
JOIN focus USING (setting, policy)
