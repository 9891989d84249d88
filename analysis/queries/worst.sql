-- At which twenty tokens is each policy furthest from the full cache, what does it say there, and how far back did it say so last?
WITH listed AS (
    SELECT setting, policy, series, budget, document, tokens, compared_at, unnest(worst) AS one,
        -- Of a longer run the twenty worst are of all of it: what lies below these within what is compared is not known.
        CASE WHEN tokens > compared_at AND len(worst) >= 20 THEN list_min([each.kl_nats for each in worst]) ELSE 0 END AS known_from
    FROM compared
), known AS (
    SELECT *, max(known_from) OVER (PARTITION BY setting, policy) AS all_from FROM listed
), top AS (  -- of a longer run those of its twenty that lie within what is compared
    SELECT setting, policy, series, budget, document, one.*,
        -- With each are 40 tokens before it and 12 behind it, as far as the text has them (kvstream/sweep/worst_tokens.py).
        one.position <= 40 AS from_start, one.position + 12 >= tokens - 1 AS to_end
    FROM known
    WHERE one.position < compared_at AND one.kl_nats >= all_from
    QUALIFY row_number() OVER (PARTITION BY setting, policy ORDER BY one.kl_nats DESC, document, one.position) <= 20
), full_runs AS (
    SELECT cell, setting, document FROM cells WHERE policy_name = 'full' AND turn = 1
), asked AS (  -- each of these tokens and the one before it
    SELECT DISTINCT full_runs.cell, own.position, own.token, before.token AS token_before
    FROM top
    JOIN full_runs USING (setting, document)
    JOIN tokens AS own ON own.cell = full_runs.cell AND own.position = top.position
    JOIN tokens AS before ON before.cell = own.cell AND before.position = own.position - 1
), met AS (  -- where the two stood last
    SELECT cell, asked.position, max(own.position) AS met_at
    FROM asked
    JOIN tokens AS own USING (cell, token)
    JOIN tokens AS before ON before.cell = own.cell AND before.position = own.position - 1
    WHERE own.position < asked.position AND before.token = asked.token_before
    GROUP BY cell, asked.position
)
SELECT top.*, tokens.nll_nats::DOUBLE AS full_nll_nats, top.nll_nats - tokens.nll_nats AS delta_nll_nats,
    top.position - met_at AS tokens_back
FROM top
LEFT JOIN full_runs USING (setting, document)
LEFT JOIN tokens ON tokens.cell = full_runs.cell AND tokens.position = top.position
LEFT JOIN met ON met.cell = full_runs.cell AND met.position = top.position
ORDER BY setting, budget, policy, kl_nats DESC, document, top.position
