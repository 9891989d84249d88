-- What does each policy lose on each document between one of the lengths asked for and the next, beside full on the same?
-- Sums are called as in `documents`, so that the same paired intervals can be made of them.
WITH differences AS (
    SELECT setting, policy, budget, evicts_after, document, length, coalesce(lag(length) OVER run, 0) AS since,
        n - coalesce(lag(n) OVER run, 0) AS n, nll_sum - coalesce(lag(nll_sum) OVER run, 0) AS nll_sum,
        correct - coalesce(lag(correct) OVER run, 0) AS correct,
        kl_n - coalesce(lag(kl_n) OVER run, 0) AS kl_n, kl_sum - coalesce(lag(kl_sum) OVER run, 0) AS kl_sum,
        same_top - coalesce(lag(same_top) OVER run, 0) AS same_top,
        full_n - coalesce(lag(full_n) OVER run, 0) AS full_n, full_nll_sum - coalesce(lag(full_nll_sum) OVER run, 0) AS full_nll_sum,
        full_correct - coalesce(lag(full_correct) OVER run, 0) AS full_correct,
        paired AND coalesce(lag(paired) OVER run, true) AS paired
    FROM documents
    WHERE in_focus AND usual_ends AND budget IS NOT NULL
    WINDOW run AS (PARTITION BY setting, policy, document ORDER BY length)
)
FROM differences
WHERE paired AND n > 0
ORDER BY setting, length, policy, document
