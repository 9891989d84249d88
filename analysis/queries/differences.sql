-- Which times differ from full's by more than full differs from itself in the same cell?
--
-- The A/A band is the interval of full (again) over full, widened to hold 1. A policy's time is a difference only where its
-- own interval lies outside the band: lower is faster, higher is slower, any other is the same as far as can be told. Without
-- both intervals nothing is said. A busy machine widens the band and so weakens the claim; it hides nothing.
WITH again AS (
    SELECT cell, phase, least(low, 1) AS band_low, greatest(high, 1) AS band_high
    FROM round_intervals
    JOIN contenders USING (cell, label)
    WHERE role = 'again' AND against = 'full'
)
SELECT cell, label, phase, low, high, band_low, band_high,
    CASE WHEN high < band_low THEN 'faster' WHEN low > band_high THEN 'slower' WHEN band_low IS NOT NULL THEN 'same' END AS verdict
FROM round_intervals
LEFT JOIN again USING (cell, phase)
WHERE against = 'full'
