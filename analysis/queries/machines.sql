-- On which hardware were the cells of each kind computed?
SELECT DISTINCT kind, value AS hardware
FROM (SELECT cell, device, 'quality' AS kind FROM cells UNION ALL SELECT cell, device, 'speed' FROM latency_cells)
JOIN environment USING (cell)
WHERE name = CASE WHEN device LIKE 'cuda%' THEN 'gpu' ELSE 'cpu' END AND value <> 'None'
ORDER BY kind, hardware
