-- Does the full cache's model do better than guessing, or is its perplexity near the size of its vocabulary?
--
-- A model that guesses every token alike has the vocabulary's size as its perplexity, one with random weights somewhat more.
-- From half of that on no policy can lose anything, and none is recommended. Older records do not know the vocabulary.
SELECT perplexity.setting, ppl_corpus AS full_ppl, vocab_size, coalesce(ppl_corpus >= vocab_size / 2, false) AS guesses
FROM perplexity
LEFT JOIN (SELECT setting, max(vocab_size) AS vocab_size FROM cells GROUP BY setting) AS vocabularies USING (setting)
WHERE policy_name = 'full' AND longest
