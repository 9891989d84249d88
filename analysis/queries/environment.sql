-- On which software and hardware were the cells computed?
SELECT name, list(DISTINCT value ORDER BY value) AS values, count(*) AS cells
FROM environment
WHERE value <> 'None'
GROUP BY name
ORDER BY name
