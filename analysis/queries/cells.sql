-- What is each finished cell: which setting, which series of policies, which variant of its positions?
WITH parsed AS (
    SELECT *,
        regexp_replace(policy, ',?(position|skip_layers)=(''[a-z]+''|"[a-z]+"|\([^)]*\))', '', 'g') AS base,
        nullif(regexp_extract(policy, '^fix_size_l2\(\d+,([0-9.]+)', 1), '') AS keep_ratio
    FROM commits
), named AS (
    SELECT *,
        CASE WHEN (SELECT count(DISTINCT model) = count(DISTINCT split_part(model, '/', -1)) FROM commits)
                THEN split_part(model, '/', -1) ELSE model END
            || CASE WHEN (SELECT count(DISTINCT text) FROM commits) > 1 THEN ' · ' || text ELSE '' END
            || CASE WHEN (SELECT count(DISTINCT dtype) FROM commits) > 1 THEN ' · ' || dtype ELSE '' END
            || CASE WHEN (SELECT count(DISTINCT device) FROM commits) > 1 THEN ' · ' || device ELSE '' END AS setting,
        CASE policy_name
            WHEN 'streaming_llm'
                THEN 'streaming_llm, ' || start_size || CASE WHEN start_size = 1 THEN ' sink' ELSE ' sinks' END
            WHEN 'fix_size_l2' THEN 'fix_size_l2 ' || strategy
            ELSE policy_name
        END
            || CASE WHEN keep_ratio IS NOT NULL AND (SELECT count(DISTINCT keep_ratio) FROM parsed) > 1
                THEN ' ' || keep_ratio ELSE '' END
            || coalesce(' ' || nullif(array_to_string(regexp_extract_all(base, '\w+=[^,)]+'), ' '), ''), '') AS series,
        coalesce(position_mode, 'full')
            || CASE WHEN skip_layers <> '' THEN ', layers ' || skip_layers || ' never evict' ELSE '' END AS variant
    FROM parsed
), ranked AS (
    SELECT setting, variant,
        row_number() OVER (PARTITION BY setting ORDER BY count(DISTINCT policy) DESC, variant <> 'cache', variant) AS place
    FROM named
    WHERE policy_name <> 'full'
    GROUP BY setting, variant
), sinks AS (
    SELECT setting, arg_min(start_size, abs(start_size - 4)) AS usual_start_size
    FROM named
    WHERE policy_name = 'streaming_llm'
    GROUP BY setting
)
SELECT named.*,
    named.policy_name = 'full' OR ranked.place = 1 AS in_focus,  -- the variant that the figures show
    named.policy_name <> 'streaming_llm' OR named.start_size = sinks.usual_start_size AS usual_sinks
FROM named
LEFT JOIN ranked USING (setting, variant)
LEFT JOIN sinks USING (setting)
