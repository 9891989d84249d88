-- How does full compare with itself in each latency cell, and was the machine busy with something else?
WITH thirds AS (
    SELECT cell, median(seconds) FILTER (round < rounds // 3) AS early,
        median(seconds) FILTER (round >= rounds - rounds // 3) AS late
    FROM rounds
    JOIN latency_cells USING (cell)
    WHERE label = 'full' AND phase = 'step'
    GROUP BY cell
), pairs AS (
    SELECT cell, label, phase, median(full_ratio) AS ratio FROM rounds WHERE role = 'again' GROUP BY ALL
), again AS (
    SELECT pairs.*, low, high,
        low IS NOT NULL AND (low > 1 OR high < 1) AND abs(ratio - 1) > 0.02 AS apart
    FROM pairs
    LEFT JOIN round_intervals ON round_intervals.cell = pairs.cell AND round_intervals.label = pairs.label
        AND round_intervals.phase = pairs.phase AND against = 'full'
), judged AS (
    SELECT latency_cells.* EXCLUDE (noisy),
        first.ratio AS again_ttft_ratio, first.low AS again_ttft_low, first.high AS again_ttft_high,
        step.ratio AS again_tpot_ratio, step.low AS again_tpot_low, step.high AS again_tpot_high,
        100 * (late / early - 1) AS drift_percent,
        nullif(array_to_string(list_filter([
            noisy,
            CASE WHEN step.apart THEN format('A/A: full against itself at {:.2f} in time per token', step.ratio) END,
            CASE WHEN first.apart THEN format('A/A: full against itself at {:.2f} in time to the first token', first.ratio) END,
            CASE WHEN abs(drift_percent) > 10 THEN format('full drifted by {:.0f} % during the run', drift_percent) END
        ], lambda reason: reason IS NOT NULL), '; '), '') AS noisy
    FROM latency_cells
    LEFT JOIN thirds USING (cell)
    LEFT JOIN again AS step ON step.cell = latency_cells.cell AND step.phase = 'step'
    LEFT JOIN again AS first ON first.cell = latency_cells.cell AND first.phase = 'ttft'
)
SELECT *,
    batch = min(batch) OVER (PARTITION BY setting) AS smallest_batch,
    -- The cell that headlines and single figures speak of: the longest context at the smallest batch, a quiet one if any.
    row_number() OVER (PARTITION BY setting ORDER BY batch, noisy IS NOT NULL, context DESC) = 1 AS headline
FROM judged
ORDER BY setting, batch, context
