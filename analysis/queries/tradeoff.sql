-- What does each policy cost in perplexity for the time per token it saves, and which does no other beat?
WITH placed AS (
    SELECT main.setting, main.policy, main.series, main.budget, main.length, ppl_corpus, ppl_ratio, ppl_ratio_low,
        ppl_ratio_high, ppl_change_percent, spread, context, batch, tpot_ms, tpot_ratio, tpot_ratio_low, tpot_ratio_high,
        main.skip_layers, main.kv_percent, noisy
    FROM pairs
    JOIN main USING (setting)
    JOIN latency ON latency.setting = latency_setting AND headline AND role = 'policy' AND latency.policy = main.policy
    WHERE longest AND main.in_focus AND ppl_ratio IS NOT NULL AND tpot_ratio IS NOT NULL
)
SELECT *,
    NOT EXISTS (  -- what is better in perplexity and not measurably slower beats, and what is faster and not worse
        FROM placed AS other
        WHERE other.setting = placed.setting AND other.policy <> placed.policy
            AND ((other.ppl_ratio < placed.ppl_ratio
                    AND coalesce(other.tpot_ratio_low, other.tpot_ratio) <= coalesce(placed.tpot_ratio_high, placed.tpot_ratio))
                OR (other.ppl_ratio = placed.ppl_ratio AND other.tpot_ratio < placed.tpot_ratio))
    ) AS unbeaten
FROM placed
QUALIFY count(*) OVER (PARTITION BY setting) > 1
ORDER BY setting, tpot_ratio, ppl_ratio, policy
