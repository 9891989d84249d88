-- Which times differ from full's by more than full differs from itself in the same cell, and by more than other work explains?
--
-- The A/A band is the interval of full (again) over full, widened to hold 1. A policy's time is a difference only where its
-- own interval lies outside the band: lower is faster, higher is slower, any other is the same as far as can be told. Without
-- both intervals nothing is said.
-- The band does not show what other work did to the one and not to the other: threads that wait for each other wait for whatever
-- took a core, full twice alike, while a loop of one thread goes on. Who lost `taken` cores' time was slowed by 1 / (1 - taken), if
-- that was spread evenly, so a difference must be larger than this, too; where it is not, nothing is said. Cores that the
-- measurement left free were not taken from it: on a GPU it needs one, which launches. As in noise.sql nothing counts that would
-- be printed as zero.
WITH again AS (
    SELECT cell, phase, least(low, 1) AS band_low, greatest(high, 1) AS band_high
    FROM round_intervals
    JOIN contenders USING (cell, label)
    WHERE role = 'again' AND against = 'full'
), cores AS (
    SELECT cell, CAST(value AS DOUBLE) AS cores FROM environment WHERE name = 'cores' AND value <> 'None'
), lost AS (
    SELECT cell, coalesce(cores, threads) AS all_cores,
        greatest(0, all_cores - CASE device WHEN 'cpu' THEN threads ELSE 1 END) AS free,
        CASE WHEN round(others, 1) > 0 THEN others WHEN others IS NULL AND round(load_after - threads) > 0 THEN load_after - threads
            ELSE 0 END AS used,
        CASE WHEN round(100 * steal) > 0 THEN steal * all_cores ELSE 0 END AS stolen
    FROM latency_cells
    LEFT JOIN cores USING (cell)
), others AS (
    SELECT cell, least(1, greatest(0, used - free) + stolen) AS taken FROM lost
)
SELECT cell, label, phase, low, high, band_low, band_high,
    CASE WHEN high < band_low * (1 - taken) THEN 'faster' WHEN low * (1 - taken) > band_high THEN 'slower'
        WHEN band_low IS NOT NULL AND taken = 0 THEN 'same' END AS verdict
FROM round_intervals
JOIN others USING (cell)
LEFT JOIN again USING (cell, phase)
WHERE against = 'full'
