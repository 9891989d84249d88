-- Whose speed belongs to whose quality: same model, device and dtype; the longest context first?
SELECT cells.setting, latency.setting AS latency_setting
FROM cells
JOIN latency USING (model, device, dtype)
WHERE headline
QUALIFY row_number() OVER (PARTITION BY cells.setting ORDER BY context DESC, latency.setting) = 1
