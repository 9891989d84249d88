-- Whose speed belongs to whose quality: same model, device and dtype; a quiet cell first, then the longest context?
SELECT cells.setting, latency.setting AS latency_setting
FROM cells
JOIN latency USING (model, device, dtype)
WHERE headline
QUALIFY row_number() OVER (PARTITION BY cells.setting ORDER BY noisy IS NOT NULL, context DESC, latency.setting) = 1
