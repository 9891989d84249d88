-- How does full compare with itself in each latency cell, and what else did the machine do meanwhile?
--
-- busy is a description in words of what else was seen: nothing is left out for it, and differences.sql judges. It is empty where its
-- numbers would be printed as zero.
WITH thirds AS (
    SELECT cell, median(seconds) FILTER (round < rounds // 3) AS early,
        median(seconds) FILTER (round >= rounds - rounds // 3) AS late
    FROM rounds
    JOIN latency_cells USING (cell)
    WHERE label = 'full' AND phase = 'step'
    GROUP BY cell
), again AS (
    SELECT rounds.cell, rounds.phase, median(full_ratio) AS ratio, max(low) AS low, max(high) AS high
    FROM rounds
    LEFT JOIN round_intervals ON round_intervals.cell = rounds.cell AND round_intervals.label = rounds.label
        AND round_intervals.phase = rounds.phase AND against = 'full'
    WHERE role = 'again'
    GROUP BY ALL
), launched AS (
    SELECT cell, mode(launched ORDER BY launched) AS usual FROM contenders WHERE role <> 'dynamic' GROUP BY cell
), otherwise AS (
    SELECT cell, list({'label': label, 'launched': launched} ORDER BY label) AS apart
    FROM contenders JOIN launched USING (cell)
    WHERE role <> 'dynamic' AND launched <> usual GROUP BY cell
), cores AS (
    SELECT cell, value AS cores FROM environment WHERE name = 'cores' AND value <> 'None'
)
SELECT latency_cells.*,
    first.ratio AS again_ttft_ratio, first.low AS again_ttft_low, first.high AS again_ttft_high,
    step.ratio AS again_tpot_ratio, step.low AS again_tpot_low, step.high AS again_tpot_high,
    100 * (late / early - 1) AS drift_percent,
    launched.usual AS launched, otherwise.apart AS launched_otherwise,  -- how a contender's step is
    nullif(array_to_string(list_filter([
        CASE WHEN round(others, 1) > 0
            THEN format('other processes used {:.1f}{} cores', others, coalesce(' of ' || cores, '')) END,
        CASE WHEN round(100 * steal) > 0 THEN format('{:.0f} % of processor time was stolen', 100 * steal) END,
        -- Where the system does not tell whose time it was, load beyond the measurement's threads was somebody else's.
        CASE WHEN others IS NULL AND round(load_after - threads) > 0
            THEN format('load {:.1f} with {} threads at work', load_after, threads) END
    ], lambda reason: reason IS NOT NULL), '; '), '') AS busy,
    batch = min(batch) OVER (PARTITION BY setting) AS smallest_batch,
    -- The cell that headlines and single figures speak of: the longest context at the smallest batch.
    row_number() OVER (PARTITION BY setting ORDER BY batch, context DESC) = 1 AS headline
FROM latency_cells
LEFT JOIN thirds USING (cell)
LEFT JOIN cores USING (cell)
LEFT JOIN launched USING (cell)
LEFT JOIN otherwise USING (cell)
LEFT JOIN again AS step ON step.cell = latency_cells.cell AND step.phase = 'step'
LEFT JOIN again AS first ON first.cell = latency_cells.cell AND first.phase = 'ttft'
ORDER BY setting, batch, context
