-- How do other people's numbers compare with ours, and may they be compared at all?
--
-- Comparable: the same model, text, number of tokens (to 5 %), method with its positions, and budget. Which documents, and
-- how many, is said but decides nothing: what they are worth is what our interval over documents says.
-- Reproduced: comparable, and the published number lies in our 95 % interval over documents, where there is one, or
-- within the tolerance: 2 % of the published value for a level, half a percentage point for a change against full.
WITH claims AS (
    SELECT source, model, dataset AS text, documents, method, NULL AS strategy, NULL AS keep_ratio, start_size, budget, tokens,
        positions, 'PPL, mean of documents' AS metric, ppl_mean_of_documents AS value, '' AS note, caveat
    FROM published_seed_main
    UNION ALL
    SELECT source, model, dataset, documents, method, NULL, NULL, start_size, budget, tokens, positions, 'accuracy, %', 100 * accuracy,
        '', caveat
    FROM published_seed_main
    UNION ALL
    SELECT source, model, dataset, documents, method, strategy, keep_ratio, NULL, budget, tokens, positions, 'PPL change, %',
        100 * ppl_change_relative, '', caveat
    FROM published_seed_cross_method
    UNION ALL
    SELECT source, model, dataset, documents, method, strategy, keep_ratio, NULL, budget, tokens, positions, 'accuracy change, %',
        100 * accuracy_change_relative, '', caveat
    FROM published_seed_cross_method
    UNION ALL
    SELECT source, model, text, documents, method, NULL, NULL, start_size, budget, tokens, positions,
        CASE metric WHEN 'ppl' THEN 'PPL' ELSE metric END, value, note, caveat
    FROM published_papers
), numbered AS (
    SELECT *, row_number() OVER (ORDER BY source DESC, metric, value) AS claim,
        regexp_replace(split_part(lower(model), '/', -1), '-hf$', '') AS model_name,
        regexp_replace(lower(text), '[^a-z0-9]', '', 'g') AS text_name,
        CASE WHEN metric LIKE '%change%' THEN 0.5 ELSE 0.02 * abs(value) END AS tolerance
    FROM claims
), runs AS (
    SELECT DISTINCT setting, model AS our_model, text AS our_text,
        regexp_replace(split_part(split_part(lower(model), '@', 1), '/', -1), '-hf$', '') AS our_model_name,
        regexp_replace(lower(text), '[^a-z0-9]', '', 'g') AS our_text_name
    FROM cells
), matched AS (
    SELECT numbered.*, perplexity.setting, perplexity.policy, perplexity.length, perplexity.documents AS our_documents, runs.* EXCLUDE (setting),
        perplexity.variant AS our_variant,
        our_model_name = model_name AS same_model,
        contains(our_text_name, text_name) AS same_text,
        numbered.method = 'full' OR perplexity.variant IS NOT DISTINCT FROM positions AS same_positions,
        CASE metric
            WHEN 'PPL, mean of documents' THEN perplexity.ppl_mean
            WHEN 'accuracy, %' THEN perplexity.accuracy_percent
            WHEN 'PPL change, %' THEN perplexity.ppl_mean_change_percent
            WHEN 'accuracy change, %' THEN perplexity.accuracy_change_percent
            WHEN 'PPL' THEN perplexity.ppl_corpus
        END AS ours,
        CASE metric
            WHEN 'PPL, mean of documents' THEN perplexity.ppl_mean_low
            WHEN 'accuracy, %' THEN perplexity.accuracy_low_percent
            WHEN 'PPL change, %' THEN CASE WHEN perplexity.spread = 'interval' THEN perplexity.ppl_mean_change_low_percent END
            WHEN 'accuracy change, %' THEN CASE WHEN perplexity.spread = 'interval' THEN perplexity.accuracy_change_low_percent END
            WHEN 'PPL' THEN perplexity.ppl_corpus_low
        END AS ours_low,
        CASE metric
            WHEN 'PPL, mean of documents' THEN perplexity.ppl_mean_high
            WHEN 'accuracy, %' THEN perplexity.accuracy_high_percent
            WHEN 'PPL change, %' THEN CASE WHEN perplexity.spread = 'interval' THEN perplexity.ppl_mean_change_high_percent END
            WHEN 'accuracy change, %' THEN CASE WHEN perplexity.spread = 'interval' THEN perplexity.accuracy_change_high_percent END
            WHEN 'PPL' THEN perplexity.ppl_corpus_high
        END AS ours_high
    FROM numbered
    LEFT JOIN perplexity ON (perplexity.policy_name = method OR numbered.start_size = 0 AND perplexity.start_size = 0 AND perplexity.recent_size IS NOT NULL)
        AND (perplexity.budget IS NOT DISTINCT FROM numbered.budget
            OR (every IS NOT NULL AND starts_with(perplexity.policy, format('recompute({},', numbered.budget))))
        AND (numbered.start_size IS NULL OR perplexity.policy_name = 'full' OR perplexity.start_size = numbered.start_size)
        AND (numbered.strategy IS NULL OR perplexity.strategy = numbered.strategy)
        AND (numbered.keep_ratio IS NULL OR perplexity.keep_ratio IS NULL OR perplexity.keep_ratio::DOUBLE = numbered.keep_ratio)
    LEFT JOIN runs USING (setting)
    QUALIFY row_number() OVER (PARTITION BY claim
        ORDER BY same_model DESC NULLS LAST, same_text DESC NULLS LAST, same_positions DESC, perplexity.in_focus DESC,
            abs(perplexity.length - numbered.tokens), usual_ends DESC, setting, policy) = 1
), compared AS (
    SELECT *,
        array_to_string(list_filter([
            CASE WHEN NOT same_model THEN 'model: ours is ' || our_model END,
            CASE WHEN NOT coalesce(same_text, false) THEN 'text: ours is ' || our_text END,
            CASE WHEN tokens IS NULL THEN 'length: theirs is not stated'
                WHEN abs(length - tokens) > 0.05 * tokens THEN 'length: ours is ' || format('{:,}', length) || ' tokens' END,
            CASE WHEN NOT same_positions
                THEN format('positions: ours are “{}”, theirs “{}”', our_variant, positions) END
        ], lambda why: why IS NOT NULL), '; ') AS apart,
        CASE WHEN documents <> our_documents THEN format('; documents: ours are {}, theirs {}', our_documents, documents)
            ELSE '' END AS besides,
        CASE WHEN metric LIKE '%change%' THEN '0.5 points' ELSE '2 %' END AS tolerance_words,
        value BETWEEN ours_low AND ours_high AS in_interval,
        abs(ours - value) <= tolerance AS near
    FROM matched
), judged AS (
    SELECT *,
        CASE
            WHEN ours IS NULL OR apart <> '' THEN 'not comparable'
            WHEN coalesce(in_interval, false) OR near THEN 'reproduced'
            ELSE 'differs'
        END AS verdict
    FROM compared
)
SELECT source, model, text, documents, method || coalesce(' ' || strategy, '') AS method, start_size, budget, tokens, metric,
    value AS published, note, caveat, setting, policy, length, our_documents, ours, ours_low, ours_high,
    100 * (ours / nullif(value, 0) - 1) AS difference_percent, tolerance, verdict,
    CASE
        WHEN metric NOT IN ('PPL', 'PPL, mean of documents', 'accuracy, %', 'PPL change, %', 'accuracy change, %')
            THEN 'no such measure in these records'
        WHEN policy IS NULL THEN 'no such policy and budget in these records'
        WHEN ours IS NULL THEN 'nothing to compare with: no full cache, or it guessed no token right'
        WHEN verdict = 'not comparable' THEN apart || besides
        WHEN in_interval THEN 'within our interval' || besides
        WHEN verdict = 'reproduced' THEN 'within ' || tolerance_words || besides
        WHEN in_interval IS NULL THEN 'more than ' || tolerance_words || ' apart' || besides
        ELSE 'outside our interval and more than ' || tolerance_words || ' apart' || besides
    END AS reason
FROM judged
ORDER BY ours IS NULL, source DESC, metric, method, budget, start_size, value
