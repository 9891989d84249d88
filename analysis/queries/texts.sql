-- From which run is each text read?
-- Its tokens are the same in all of them.
SELECT setting, document, cell, (row_number() OVER (ORDER BY setting, document))::INTEGER AS number
FROM cells
WHERE coalesce(every, 1) = 1
QUALIFY row_number() OVER (PARTITION BY setting, document ORDER BY tokens DESC, cell) = 1
