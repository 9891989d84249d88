"""Facts at known distances: exact, the same at both ends, spread evenly, seeded; what cannot be is one error."""

import hashlib
import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kvstream.grid.cells import QualityCell
from kvstream.inputs import text_sources
from kvstream.inputs.documents import first_tokens, load_documents
from kvstream.inputs.model_loading import load_tokenizer
from kvstream.inputs.models import resolve
from kvstream.inputs.recall import CUE, DISTANCES, SHARE, START, VALUE, Pair, plant, sentences
from kvstream.policies import Full

TEXT = " ".join(f"In the beginning was word number {number % 70}, and it ran on." for number in range(2000))
SAID = re.compile(r"The ([a-z]+ [a-z]+) is number (\d{5})\.")
ASKED = re.compile(r"Which number is the ([a-z]+ [a-z]+)\? The \1 is number (\d{5})\.")


def byte_level():
    """Merges of its own training text alone: what it has not met falls into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT, "The lion is number 1. Which number is the lion?"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


def word_level():
    words = sorted(set(TEXT.split()))
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate([*words, "?"])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTES, WORDS = byte_level(), word_level()


@pytest.fixture(scope="module")
def demo():
    return load_tokenizer(resolve("smollm2-135m"))


@pytest.fixture
def book(tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "texts" / f"{name}.txt").write_text(f"Book {name}. {TEXT}")
    return str(tmp_path / "texts")


def check_distances(document):
    """Each answer is the tokens that stand exactly so far before it."""
    assert document.answers
    for answer in document.answers:
        here = document.token_ids[answer.position :][: answer.tokens]
        there = document.token_ids[answer.position - answer.distance :][: answer.tokens]
        assert len(here) == answer.tokens > 0
        assert here.tolist() == there.tolist()


def check_evenly(document):
    counts = Counter(answer.distance for answer in document.answers)
    assert set(counts) <= set(DISTANCES)
    assert max(counts.values()) - min(counts.values()) <= 1
    return counts


@pytest.mark.parametrize("tokens", [256, 300, 1024, 4096])
@pytest.mark.parametrize(("name", "kind"), [("bytes", "sentences"), ("bytes", "strings"), ("words", "strings")])
def test_facts_stand_exactly_so_far_before_their_answers(book, name, kind, tokens):
    tokenizer = {"bytes": BYTES, "words": WORDS}[name]
    for document in load_documents(f"recall:{kind}:{book}", documents=2, tokens=tokens, tokenizer=tokenizer):
        assert len(document.token_ids) == tokens
        assert document.token_ids.dtype == np.int32
        assert document.sha256 == hashlib.sha256(document.token_ids.tobytes()).hexdigest()
        check_distances(document)
        check_evenly(document)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "sentences", "strings"])
def test_the_demo_models_tokenizer_on_the_king_james_bible(demo, kind):
    first, second = load_documents(f"recall:{kind}", documents=2, tokens=8192, tokenizer=demo)
    assert (first.name, second.name) == ("recall 1", "recall 2")
    for document in (first, second):
        check_distances(document)
        assert min(check_evenly(document).values()) >= 10
        assert {answer.distance for answer in document.answers} == set(DISTANCES[:-1])  # 8,192 does not fit in as many
    assert demo.decode(first.token_ids).startswith("In the beginning God created the heaven")


@pytest.mark.slow
def test_sentences_read_as_sentences_and_each_question_has_the_answer_of_its_fact(demo):
    [document] = load_documents("recall:", documents=1, tokens=4096, tokenizer=demo)
    text = demo.decode(document.token_ids)
    asked = dict(ASKED.findall(text))
    said = dict(SAID.findall(ASKED.sub("", text)))
    assert asked == said
    assert len(said) == len(set(said.values())) == len(document.answers) == len(ASKED.findall(text))
    numbers = [demo.decode(document.token_ids[one.position :][: one.tokens]) for one in document.answers]
    assert numbers == [number for _, number in ASKED.findall(text)]


def test_what_is_planted_is_half_at_most_and_the_text_goes_on_around_it(book):
    """Take the strings out, and what is left are the first tokens of the text."""
    [document] = load_documents(f"recall:strings:{book}", documents=1, tokens=2048, tokenizer=WORDS)
    taken = np.zeros(2048, bool)
    for answer in document.answers:
        for value in (answer.position, answer.position - answer.distance):
            assert not taken[value - CUE : value + VALUE].any(), "no two overlap"
            taken[value - CUE : value + VALUE] = True
    assert not taken[:START].any(), "policies protect the first tokens"
    assert 0.4 < taken.mean() <= SHARE
    text = next(text_sources.read(book))[1]
    assert document.token_ids[~taken].tolist() == first_tokens(WORDS, text, int((~taken).sum())).tolist()
    cues = [tuple(document.token_ids[one.position - CUE : one.position]) for one in document.answers]
    assert len(set(cues)) == len(cues)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.tuples(*[st.integers(1, 12)] * 3, st.integers(0, 3)), min_size=64, max_size=64),
    tokens=st.integers(256, 1500),
    seed=st.integers(0, 2**32),
)
def test_pairs_of_any_lengths_are_planted_whole(lengths, tokens, seed):
    ids = iter(range(10_000, 100_000))
    pairs = [Pair(*([next(ids) for _ in range(length)] for length in four)) for four in lengths]
    text = np.arange(tokens, dtype=np.int32)
    planted, answers = plant(text, pairs, random.Random(seed))
    kept = planted[planted < 10_000]
    assert kept.tolist() == list(range(len(kept)))
    assert len(kept) >= (1 - SHARE) * tokens
    assert planted[:START].tolist() == list(range(START))
    found = planted.tolist()
    starts = {found[answer.position]: answer for answer in answers}
    length = 0
    for pair in pairs[: len(answers)]:
        answer = starts[pair.value[0]]
        for stem, value in ((pair.fact, answer.position - answer.distance), (pair.question, answer.position)):
            whole = [*stem, *pair.value, *pair.end]
            assert found[value - len(stem) :][: len(whole)] == whole
            length += len(whole)
        assert answer.tokens == len(pair.value)
    assert length + len(kept) == tokens


# Seeds


def test_the_same_again_and_others_for_other_names_and_kinds(book):
    def of(spec, **how):
        return load_documents(spec.format(book), **{"documents": 2, "tokens": 600, "tokenizer": BYTES} | how)

    first, second = of("recall:strings:{}")
    assert [one.sha256 for one in of("recall:strings:{}")] == [first.sha256, second.sha256]
    assert [(one.distance, one.position) for one in first.answers] != [
        (one.distance, one.position) for one in second.answers
    ]
    [again] = of("recall:strings:{}", documents=None, name="recall 2")
    assert (again.sha256, again.answers, again.name) == (second.sha256, second.answers, "recall 2")
    assert [one.name for one in of("recall:strings:{}", documents=None)] == ["recall 1", "recall 2", "recall 3"]
    with pytest.raises(ValueError, match=r"^documents: 'recall 4' is not in 'recall:strings:"):
        of("recall:strings:{}", name="recall 4")


def test_what_is_drawn_is_the_same_on_every_machine_and_version():
    pairs = [Pair((10_000 + 10 * n,), (10_001 + 10 * n,), (10_002 + 10 * n,), ()) for n in range(8)]
    _, answers = plant(np.arange(300, dtype=np.int32), pairs, random.Random("strings recall 1"))
    assert [(one.position, one.distance) for one in answers] == [
        (154, 128),
        (248, 64),
        (253, 128),
        (280, 256),
        (284, 256),
        (286, 128),
        (289, 64),
        (295, 256),
    ]


def test_a_bos_token_stays_first_and_answers_stay_where_they_are(book):
    spec = f"recall:strings:{book}"
    [with_one] = load_documents(spec, documents=1, tokens=700, tokenizer=BYTES, bos="on")
    [without] = load_documents(spec, documents=1, tokens=700, tokenizer=BYTES, bos="off")
    assert with_one.bos
    assert with_one.token_ids[0] == 0
    assert (with_one.token_ids == 0).sum() == 1
    assert not without.bos
    check_distances(with_one)
    check_distances(without)


# Records


def test_a_cells_record_holds_the_answers_of_a_text_that_has_any(book):
    def fields(spec):
        [document] = load_documents(spec, documents=1, tokens=300, tokenizer=WORDS)
        return document, QualityCell(
            resolve("shape:pythia-70m"), "cpu", "float32", spec, document, (300,), Full()
        ).fields

    document, recorded = fields(f"recall:strings:{book}")
    assert recorded["answers"] == [[one.position, one.tokens, one.distance] for one in document.answers]
    assert "answers" not in fields(book)[1]


# Complaints


@pytest.mark.parametrize(
    "spec", ["recall:sums", "recall:my.txt", "recall:strings:recall:", "recall:sentences:recall:kjv"]
)
def test_what_cannot_be_planted_is_refused(spec):
    with pytest.raises(
        ValueError, match=rf"^text: '{re.escape(spec)}' plants neither sentences nor strings; write rec"
    ):
        next(text_sources.read(spec))
    with pytest.raises(ValueError, match=r"^text: "):
        load_documents(spec, tokens=300, tokenizer=BYTES)


def test_a_length_without_room_says_how_much_is_needed(book):
    with pytest.raises(ValueError, match=r"^lengths: 60 tokens have no room for a fact and a question 64 t") as caught:
        load_documents(f"recall:strings:{book}", documents=1, tokens=60, tokenizer=WORDS)
    least = int(re.search(r"; give (\d+) or more$", str(caught.value))[1])
    [document] = load_documents(f"recall:strings:{book}", documents=1, tokens=least, tokenizer=WORDS)
    assert len(document.answers) == 1
    with pytest.raises(ValueError, match=r"^lengths: "):
        load_documents(f"recall:strings:{book}", documents=1, tokens=least - 1, tokenizer=WORDS)


def test_a_tokenizer_that_does_not_know_numbers_is_refused(book):
    with pytest.raises(ValueError, match=r"^text: the tokenizer of .* same tokens, .*; use recall:strings$"):
        load_documents(f"recall:sentences:{book}", documents=1, tokens=600, tokenizer=WORDS)


def test_a_space_before_each_number_is_no_part_of_an_answer(demo):
    pairs = sentences(demo, random.Random("x"))
    assert {len(pair.value) for pair in pairs} == {5}
    assert {demo.decode(pair.value).isdecimal() for pair in pairs} == {True}
    assert {demo.decode(pair.fact)[-1] for pair in pairs} == {" "}


def test_a_text_without_enough_tokens_or_different_ones_is_refused(tmp_path):
    (tmp_path / "one.txt").write_text("In " * 5000)
    with pytest.raises(
        ValueError, match=r"^text: 'recall 1' has 1 different tokens, a random string needs 12; give ano"
    ):
        load_documents(f"recall:strings:{tmp_path}", documents=1, tokens=600, tokenizer=WORDS)
    with pytest.raises(
        ValueError, match=r"^documents: 1 asked, only 0 in 'recall:.* at least 6000 .* has 5000; ask for"
    ):
        load_documents(f"recall:strings:{tmp_path}", documents=1, tokens=6000, tokenizer=WORDS)
    (tmp_path / "one.txt").write_text("")
    with pytest.raises(ValueError, match=r"^text: .* is empty"):
        load_documents(f"recall:strings:{tmp_path}", documents=1, tokens=600, tokenizer=WORDS)


def test_short_texts_are_passed_over_and_numbers_stay(tmp_path, caplog):
    for name, count in (("a", 400), ("b", 3), ("c", 400)):
        (tmp_path / f"{name}.txt").write_text(" ".join(TEXT.split()[:count]))
    found = load_documents(f"recall:strings:{tmp_path}", documents=2, tokens=300, tokenizer=WORDS)
    assert [document.name for document in found] == ["recall 1", "recall 3"]
    assert "'recall 2' has 3" in caplog.text


def test_rows_are_joined_before_facts_are_planted(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in TEXT.split(". ")[:400]))
    spec = f"recall:strings:{tmp_path / 'rows.jsonl'}"
    [document] = load_documents(spec, documents=1, tokens=400, tokenizer=BYTES, join_rows=True)
    assert document.join_rows
    check_distances(document)
    with pytest.raises(ValueError, match=r"^join_rows: 'kjv' holds whole texts"):
        next(text_sources.read("recall:", join_rows=True))
