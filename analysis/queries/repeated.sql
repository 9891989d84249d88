-- Where does each text repeat itself: which tokens end five that stood in it before, and how far back, in powers of two?
--
-- Found once for each text and by its tokens alone, whatever its policies lose there. Five, as the fewest that only the cache
-- can tell: of 4,096 tokens of Genesis, Exodus and Psalms, streaming_llm(4,252) lost on those that repeat what its window no
-- longer holds 0.35 nats more than full for repeats of two tokens, 0.44 of three, 0.52 of four and 0.59 of five; of ten as much
-- (0.59), and a sixth as many (45 of 264). Elsewhere it lost 0.1. (smollm2-135m, kjv)
WITH stretches AS (
    SELECT number, position, list(token) OVER (PARTITION BY number ORDER BY position ROWS 4 PRECEDING) AS stretch
    FROM tokens
    JOIN texts USING (cell)
)
SELECT number, position,
    (2 ** floor(log2(position - lag(position) OVER (PARTITION BY number, stretch ORDER BY position))))::INTEGER AS distance
FROM stretches
QUALIFY distance IS NOT NULL
