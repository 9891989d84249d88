-- What does eviction itself add to a step, against as many cached keys of which none leaves?
SELECT setting, budget, series, contender, context, batch, eviction_percent, eviction_low_percent, eviction_high_percent,
    rounds_n, busy
FROM latency
WHERE headline AND filled AND budget IS NOT NULL AND in_focus AND usual_ends AND eviction_percent IS NOT NULL
ORDER BY setting, budget, eviction_percent, contender
