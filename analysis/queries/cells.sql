-- What is each finished quality cell: which setting, which series of policies, which variant of its positions?
SELECT commits.*, setting, base, keep_ratio, policy_fields, recent_size, series, variant, in_focus, usual_ends
FROM commits
JOIN settings USING (cell)
JOIN policies USING (policy)
JOIN focus USING (setting, policy)
