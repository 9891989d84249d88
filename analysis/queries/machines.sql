-- On which hardware were the cells of each kind computed?
SELECT DISTINCT kind, value AS hardware
FROM (SELECT cell, device, 'quality' AS kind FROM cells UNION ALL SELECT cell, device, 'speed' FROM latency_cells)
JOIN environment USING (cell)
WHERE name = CASE WHEN device = 'cpu' THEN 'cpu' ELSE 'gpu' END AND value <> 'None'
ORDER BY kind, hardware
