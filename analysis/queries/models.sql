-- Which models were run, what is special about them, and how far were they trained?
SELECT model, max(model_note) AS note, max(trained_context) AS trained_context, max(tokens) AS tokens,
    max(tokens) - 1 > max(trained_context) AS beyond  -- the last token is only predicted
FROM (
    SELECT model, model_note, trained_context, tokens FROM cells
    UNION ALL
    SELECT model, model_note, trained_context, NULL FROM latency_cells
)
GROUP BY model
ORDER BY model
