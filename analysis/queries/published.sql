-- How do other people's numbers compare with ours, and may they be compared at all?
WITH claims AS (
    SELECT source, model, 'PG-19' AS text, method, NULL AS strategy, start_size, budget, tokens,
        'PPL, mean of documents' AS metric, ppl_mean_of_documents AS value, '' AS note
    FROM published_seed_main
    UNION ALL
    SELECT source, model, 'PG-19', method, NULL, start_size, budget, tokens, 'accuracy, %', 100 * accuracy, ''
    FROM published_seed_main
    UNION ALL
    SELECT source, model, 'PG-19', method, strategy, NULL, budget, tokens, 'PPL change, %', 100 * ppl_change_relative, ''
    FROM published_seed_cross_method
    UNION ALL
    SELECT source, model, 'PG-19', method, strategy, NULL, budget, tokens, 'accuracy change, %',
        100 * accuracy_change_relative, ''
    FROM published_seed_cross_method
    UNION ALL
    SELECT source, model, 'PG-19', method, NULL, start_size, budget, tokens,
        CASE metric WHEN 'ppl' THEN 'PPL' ELSE metric END, value, note
    FROM published_papers
), numbered AS (
    SELECT *, row_number() OVER (ORDER BY source DESC, metric, value) AS claim FROM claims
), matched AS (
    SELECT numbered.*, main.setting, main.policy, main.length, cells.model AS our_model, cells.text AS our_text,
        main.variant AS our_variant,
        CASE metric
            WHEN 'PPL, mean of documents' THEN main.ppl_mean
            WHEN 'accuracy, %' THEN main.accuracy_percent
            WHEN 'PPL change, %' THEN main.ppl_mean_change_percent
            WHEN 'accuracy change, %' THEN main.accuracy_change_percent
            WHEN 'PPL' THEN main.ppl_corpus
        END AS ours
    FROM numbered
    LEFT JOIN main ON main.policy_name = CASE WHEN numbered.start_size = 0 THEN 'recent_only' ELSE method END
        AND main.budget IS NOT DISTINCT FROM numbered.budget
        AND (numbered.start_size IS NULL OR main.policy_name = 'full' OR main.start_size = numbered.start_size)
        AND (numbered.strategy IS NULL OR main.strategy = numbered.strategy)
    LEFT JOIN (SELECT DISTINCT setting, model, text FROM cells) AS cells USING (setting)
    QUALIFY row_number() OVER (PARTITION BY claim
        ORDER BY split_part(our_model, '/', -1) = split_part(numbered.model, '/', -1) DESC NULLS LAST,
        lower(our_text) LIKE 'pg%19%' DESC, main.in_focus DESC, abs(main.length - numbered.tokens), usual_sinks DESC,
        setting, policy) = 1
), judged AS (
    SELECT *,
        array_to_string(list_filter([
            CASE WHEN split_part(our_model, '/', -1) <> split_part(model, '/', -1) THEN 'model: ours is ' || our_model END,
            CASE WHEN NOT lower(our_text) LIKE 'pg%19%' THEN 'text: ours is ' || our_text END,
            CASE WHEN coalesce(abs(length - tokens) > 0.05 * tokens, true) THEN 'length: ours is ' || format('{:,}', length) || ' tokens' END,
            CASE WHEN source LIKE 'seed%' AND method <> 'full' AND our_variant <> 'absolute, layers 0,1 never evict'
                THEN 'positions: the seed''s are absolute, its layers 0 and 1 never evict' END
        ], lambda reason: reason IS NOT NULL), '; ') AS reason
    FROM matched
)
SELECT source, model, method || coalesce(' ' || strategy, '') AS method, start_size, budget, tokens, metric, value AS published,
    note, setting, policy, length, ours,
    CASE
        WHEN policy IS NULL OR ours IS NULL THEN 'not measured'
        WHEN reason <> '' THEN 'not comparable'
        WHEN abs(ours - value) <= 0.02 * abs(value) THEN 'reproduced'
        ELSE 'differs'
    END AS verdict,
    CASE WHEN policy IS NULL OR ours IS NULL THEN 'no such policy and budget in these records' ELSE reason END AS reason
FROM judged
ORDER BY ours IS NULL, source DESC, metric, method, budget, start_size, value
