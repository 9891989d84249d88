-- What is each policy: which series does it belong to, and which variant of its positions is it?
WITH named AS (
    SELECT policy, policy_name, strategy, position_mode, budget, start_size, skip_layers FROM commits
    UNION
    SELECT policy, policy_name, strategy, position_mode, budget, start_size, skip_layers FROM contenders
), parsed AS (
    SELECT *,
        regexp_replace(policy, ',?(position|skip_layers)=(''[a-z]+''|"[a-z]+"|\([^)]*\))', '', 'g') AS base,
        nullif(regexp_extract(policy, '^fix_size_l2\(\d+,([0-9.]+)', 1), '') AS keep_ratio
    FROM named
    QUALIFY row_number() OVER (PARTITION BY policy ORDER BY named) = 1
)
SELECT policy, policy_name, start_size, base, keep_ratio,
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
