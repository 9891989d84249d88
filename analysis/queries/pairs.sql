-- Whose speed belongs to whose quality: same model, device and dtype; the longest context first, then the sweep's own?
SELECT cells.setting, noise.setting AS latency_setting
FROM cells
JOIN noise USING (model, device, dtype)
WHERE headline
QUALIFY row_number() OVER (PARTITION BY cells.setting ORDER BY context DESC, noise.planned DESC, noise.setting) = 1
