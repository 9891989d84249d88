"""Texts to token ids: every source, every complaint, and reading part of a text gives what reading all would."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from kvstream.inputs import hub, text_files, text_sources
from kvstream.inputs.documents import first_tokens, load_documents

ROOT = Path(__file__).parent.parent.parent
WORDS = "in the beginning was a word and it ran on: over hills, under bridges — naïvely … 1234 times\n\n".split(" ")  # noqa: SIM905


def byte_level():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([" ".join(WORDS) * 20, "aaaa aaaaaaaa ==== ========"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=32)


def word_level():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


BYTES, LETTERS = byte_level(), word_level()


def load(spec, **options):
    return load_documents(str(spec), **{"tokens": 4, "tokenizer": LETTERS} | options)


def long(letter="a", count=10):
    return " ".join([letter] * count)


def parquet_of(**columns):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


# Sources


def test_kjv_books_in_canonical_order():
    (genesis, exodus) = load("kjv", documents=2, tokens=50, tokenizer=BYTES)
    assert (genesis.name, exodus.name) == ("Genesis", "Exodus")
    assert BYTES.decode(genesis.token_ids).startswith("In the beginning God created the heaven")
    assert genesis.token_ids.dtype == np.int32
    assert genesis.token_ids.shape == (50,)
    assert genesis.sha256 == hashlib.sha256(genesis.token_ids.tobytes()).hexdigest()
    books = dict(text_sources.read("kjv"))
    assert len(books) == 66
    assert list(books)[-1] == "Revelation"
    assert books["Exodus"].startswith("Now these [are] the names of the children of Israel")
    assert all(text == text.strip() and text for text in books.values())


def test_all_books_are_one_text_where_it_is_asked_for():
    [(name, whole)] = text_sources.read("kjv:whole")
    books = [text for _, text in text_sources.read("kjv")]
    assert name == "kjv:whole"
    assert whole == "\n\n".join(books)
    assert len(books) == 66
    with pytest.raises(ValueError, match=r"^join_rows: 'kjv:whole' holds whole texts"):
        next(text_sources.read("kjv:whole", join_rows=True))


def test_txt_is_one_document(tmp_path):
    (tmp_path / "book.txt").write_text(f"{long('a', 2)}\n\n{long('b', 2)}\n")
    (document,) = load(tmp_path / "book.txt")
    assert (document.name, document.token_ids.tolist()) == ("book", [0, 0, 1, 1])


@pytest.mark.parametrize("name", ["x[1].txt", "a b*.txt", "..hidden.TXT"])
def test_file_names_are_no_patterns(tmp_path, name):
    for decoy in ("x1.txt", "a bc.txt"):
        (tmp_path / decoy).write_text(long("b"))
    (tmp_path / name).write_text(long("a"))
    (document,) = load(tmp_path / name)
    assert document.name == Path(name).stem
    assert document.token_ids.tolist() == [0] * 4


def test_jsonl_rows_columns_and_names(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"text": long("a"), "body": long("b")}, {"text": long("b"), "body": long("a")}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(document.name, document.token_ids[0]) for document in load(file)] == [("row 0", 0), ("row 1", 1)]
    assert [document.token_ids[0] for document in load(f"{file}:body")] == [1, 0]


def test_parquet_titles_made_unique(tmp_path):
    file = tmp_path / "books.parquet"
    titles = ["Emma", "Emma", "</script>", ""]
    file.write_bytes(parquet_of(short_book_title=titles, text=[long()] * 4))
    assert [document.name for document in load(file)] == ["Emma", "Emma (2)", "</script>", "row 3"]


def test_pg19_is_read_from_a_pinned_parquet_snapshot(tmp_path, monkeypatch):
    asked = {}

    def fetch(repo, revision, **options):
        asked.update(repo=repo, revision=revision)
        assert options["enough"](tmp_path)
        return tmp_path

    monkeypatch.setattr(hub, "fetch", fetch)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test-00000-of-00001-29a571947c0b5ccc.parquet").write_bytes(
        parquet_of(short_book_title=["Middlemarch"], text=[long()])
    )
    assert [document.name for document in load("pg19")] == ["Middlemarch"]
    assert asked == {"repo": "emozilla/pg19-test", "revision": "c5e39bf32e33f9111323aa68d7d9000d22722035"}
    load("pg19@main")
    assert asked["revision"] == "main"
    load("hub:some/books@v1")
    assert asked == {"repo": "some/books", "revision": "v1"}


def test_incomplete_shards_are_not_enough():
    shards = [Path(f"data/test-0000{index}-of-00003.parquet") for index in range(3)]
    assert text_sources._complete(shards)
    assert not text_sources._complete(shards[:2])
    assert not text_sources._complete([])


def rows(file, *texts, **more):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        file.write_bytes(parquet_of(text=texts, **more))
    else:
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(file)


# Only the text is read


def test_other_columns_may_hold_what_they_like(tmp_path):
    """A nested field that gains a key late, types that change from row to row."""
    file = tmp_path / "rows.jsonl"
    lines = [{"meta": {"a": "1"}, "text": long(), "n": 1}] * 3000
    lines += [{"meta": {"a": "1", "link": ["x"]}, "text": long("b"), "n": {"x": None}}, {"text": long("b"), "meta": 7}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [text for _, text in text_sources.read(str(file))] == [long()] * 3000 + [long("b")] * 2


def test_of_a_parquet_file_only_the_text_is_read(tmp_path, monkeypatch):
    file = tmp_path / "rows.parquet"
    nested = [{"deep": [1]}, {"deep": []}]
    file.write_bytes(parquet_of(**{"a.b": ["x", "y"]}, text=["one", "two"], title=["T", None], meta=nested))
    asked = []

    def spy(self, rows, columns, original=pq.ParquetFile.iter_batches):
        asked.append(columns)
        return original(self, rows, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert list(text_sources.read(str(file))) == [("T", "one"), ("row 1", "two")]
    assert list(text_sources.read(f"{file}:a.b")) == [("T", "x"), ("row 1", "y")]
    assert asked == [["text", "title"], ["a.b", "title"]]


# Folders


def test_folders_are_read_with_all_below_them(tmp_path):
    for name in ("b.txt", "a/a.txt", "a/deep/er/c.txt", "z/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(long())
    rows(tmp_path / "a" / "rows.jsonl", long(), long())
    (tmp_path / "notes.md").write_text("not a text of ours")
    names = ["a", "c", "rows row 0", "rows row 1", "b", "d"]
    assert [name for name, _ in text_sources.read(str(tmp_path))] == names
    assert [name for name, _ in text_sources.read(f"{tmp_path}/*")] == names, "also folders that a glob finds"
    assert [name for name, _ in text_sources.read(f"{tmp_path}/**/*.txt")] == ["a", "c", "b", "d"]


def test_names_say_the_folder_where_they_are_the_same_without(tmp_path):
    for name in ("one/a.txt", "two/a.txt", "two/b.txt", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(long())
    rows(tmp_path / "one" / "r.jsonl", long())
    rows(tmp_path / "two" / "r.jsonl", long())
    names = [document.name for document in load(tmp_path)]
    assert names == ["a", "one/a", "one/r row 0", "two/a", "b", "two/r row 0"]
    assert [document.name for document in load(f"{tmp_path}/*/a.txt")] == ["one/a", "two/a"]
    assert [document.name for document in load(tmp_path, name="two/a")] == ["two/a"]


@pytest.mark.parametrize("pattern", ["", "/**/*.txt", "/**"])
def test_what_is_hidden_is_passed_over_and_named_once(tmp_path, pattern, caplog):
    for name in ("a.txt", "sub/b.txt", "._a.txt", "sub/.x.txt", ".git/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(long())
    for _ in range(2):
        assert [document.name for document in load(f"{tmp_path}{pattern}")] == ["a", "b"]
    [told] = [message for message in caplog.messages if "hidden" in message]
    assert all(name in told for name in ("._a.txt", "sub/.x.txt", ".git"))
    assert [document.name for document in load(f"{tmp_path}/.git")] == ["c"], "but for what is named"


def test_linked_folders_are_refused(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(long())
    (tmp_path / "texts" / "loop").symlink_to(tmp_path / "texts")
    with pytest.raises(ValueError, match=r"^text: 'loop' in '.*texts' is a link to a folder; name that folder"):
        load(tmp_path / "texts")
    assert [document.name for document in load(tmp_path / "texts" / "*.txt")] == ["a"]


def test_binary_junk_in_a_folder_is_one_clear_error(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_bytes(b"a \0\1")
    with pytest.raises(ValueError, match=r"^text: '.*sub/a.txt' is binary, it holds NUL bytes; give a UTF-8 text"):
        list(text_sources.read(str(tmp_path)))


# Rows that are lines of one text


WIKITEXT = ["", " = Title = \n", "", " First line . \n", " Second line without an end", "third\n", ""]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rows_are_joined_a_line_each(tmp_path, suffix):
    file = rows(tmp_path / f"wiki{suffix}", *WIKITEXT)
    [(name, text)] = text_sources.read(file, join_rows=True)
    whole = "\n = Title = \n\n First line . \n Second line without an end\nthird\n"
    assert (name, text.first(1000)) == ("wiki", whole)
    assert [text.first(length) for length in (0, 5, 9)] == ["", whole[:5], whole[:9]]
    [document] = load(file, join_rows=True, tokens=6)
    assert document.join_rows
    assert document.token_ids.tolist() == first_tokens(LETTERS, whole, 6).tolist()


def test_shards_of_a_split_are_joined_and_splits_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "fetch", lambda *args, **options: tmp_path)
    for name, text in (("x/test-00000-of-00002", "a"), ("x/test-00001-of-00002", "b"), ("y/test-00000-of-00001", "c")):
        rows(tmp_path / f"{name}.parquet", text, "b")
    found = [(name, text.first(99)) for name, text in text_sources.read("hub:o/n", join_rows=True)]
    assert found == [("x/test", "a\nb\nb\nb"), ("y/test", "c\nb")]


def test_rows_are_joined_no_further_than_needed(tmp_path, monkeypatch):
    file = rows(tmp_path / "wiki.jsonl", *[f"{long()} . \n"] * 20_000)
    read = []
    original = text_files._jsonl
    monkeypatch.setattr(text_files, "_jsonl", lambda *given: (read.append(1) or row for row in original(*given)))
    [document] = load(file, join_rows=True, tokens=100)
    assert len(document.token_ids) == 100
    assert len(read) < 500


def test_rows_that_are_all_too_short_name_the_remedy(tmp_path):
    file = rows(tmp_path / "wiki.jsonl", *["a a"] * 50)
    with pytest.raises(
        ValueError, match=r"^documents: .* has 2; join rows of a line each with --join-rows, or ask for"
    ):
        load(file)
    with pytest.raises(ValueError, match=r"^documents: 1 asked, only 0 .* has 100; ask for fewer documents"):
        load(file, join_rows=True, tokens=101)
    for name in "ab":
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{name}.txt").write_text("a")
    with pytest.raises(ValueError, match=r"^documents: 1 asked, only 0 .* has 1; ask for fewer documents"):
        load(tmp_path / "texts")


@pytest.mark.parametrize("spec", ["kjv", "texts"])
def test_whole_texts_cannot_be_joined(tmp_path, monkeypatch, spec):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text(long())
    with pytest.raises(
        ValueError, match=rf"^join_rows: '{spec}' holds whole texts, no rows of one; leave --join-rows out"
    ):
        load(spec, join_rows=True)


def test_empty_files_of_rows_are_no_documents(tmp_path):
    rows(tmp_path / "a.jsonl")
    rows(tmp_path / "b.jsonl", long())
    assert [document.name for document in load(tmp_path, join_rows=True)] == ["b"]
    (tmp_path / "b.jsonl").unlink()
    with pytest.raises(ValueError, match=r"^text: .* is empty"):
        load(tmp_path, join_rows=True)


# BOS


def with_bos(adds, also_eos=False):
    """A tokenizer of words with a BOS token, id 3, and an EOS token, id 4."""
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2, "<s>": 3, "</s>": 4}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if adds:
        words.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>" if also_eos else "<s> $A", special_tokens=[("<s>", 3), ("</s>", 4)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize(
    ("tokenizer", "bos", "expected"),
    [
        (with_bos(True), "auto", [3, 0, 0, 0]),
        (with_bos(True), "off", [0, 0, 0, 0]),
        (with_bos(False), "auto", [0, 0, 0, 0]),
        (with_bos(False), "on", [3, 0, 0, 0]),
        (with_bos(True, also_eos=True), "auto", [3, 0, 0, 0]),
        (LETTERS, "auto", [0, 0, 0, 0]),
    ],
)
def test_documents_begin_with_bos_as_asked(tmp_path, tokenizer, bos, expected):
    (tmp_path / "a.txt").write_text(long())
    [document] = load(tmp_path, tokenizer=tokenizer, bos=bos)
    assert document.token_ids.tolist() == expected
    assert document.token_ids.dtype == np.int32
    assert document.bos == (expected[0] == 3)
    assert document.sha256 == hashlib.sha256(document.token_ids.tobytes()).hexdigest()


def test_bos_is_one_of_the_tokens(tmp_path):
    (tmp_path / "a.txt").write_text(long(count=3))
    assert len(load(tmp_path, tokenizer=with_bos(True))[0].token_ids) == 4
    with pytest.raises(ValueError, match=r"has 3; ask"):
        load(tmp_path, tokenizer=with_bos(True), bos="off")


# Complaints


def test_too_few_documents_says_needed_and_available(tmp_path):
    for index in range(7):
        (tmp_path / f"{index}.txt").write_text(long(count=10 if index < 5 else 3))
    with pytest.raises(ValueError, match=r"^documents: ") as caught:
        load(tmp_path, documents=12, tokens=8)
    assert str(caught.value) == (
        f"documents: 12 asked, only 5 in '{tmp_path}' have at least 8 tokens, the longest of the others has 3; "
        "ask for fewer documents or shorter lengths"
    )
    with pytest.raises(ValueError, match=r"^documents: 1 asked, only 0 .* at least 11 tokens.* has 10; ask"):
        load(tmp_path, tokens=11)


def test_a_name_that_is_not_there_or_too_short():
    with pytest.raises(ValueError, match=r"^documents: 'Genesys' is not in 'kjv'; was the text changed"):
        load("kjv", name="Genesys")
    with pytest.raises(ValueError, match=r"^documents: 1 asked, only 0 in 'kjv' have at least 9999 tokens"):
        load("kjv", name="Jude", tokens=9999)


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("", "is no file, folder or glob"),
        ("nul\0.txt", "is no file, folder or glob"),
        ("x" * 300 + ".txt", "is no file, folder or glob"),
        ("hub:nothing", "names no dataset"),
        ("hub:a--b/c", "names no dataset"),
    ],
)
def test_unknown_sources(spec, complaint):
    with pytest.raises(ValueError, match=r"^text: ") as caught:
        load(spec)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.jsonl", b"\n\n", "is empty"),
        ("empty.parquet", b"", "is empty"),
        ("latin.txt", b"caf\xe9 caf\xe9", "binary or not UTF-8"),
        ("nul.txt", b"a\0b", "is binary"),
        ("bad.jsonl", b"{bad", "cannot be read"),
        ("bad.parquet", b"PAR1 nonsense", "cannot be read"),
        ("no.jsonl", b'{"body": "a", "title": "t"}\n', "does not exist; there are 'body', 'title'; write NAME:column"),
        ("int.jsonl", b'{"text": 3}\n', "holds int, not text"),
        ("book.pdf", b"%PDF", "is of no known kind"),
        ("list.jsonl", b'{"text": "a"}\n[1, 2]\n', "line 2 is no JSON object"),
        ("half.jsonl", b'{"text": "a \\ud800"}\n', "holds half a character"),
        ("half.jsonl", b'{"text": "a", "title": "\\ud800"}\n', "holds half a character"),
        ("deep.jsonl", b"[" * 100_000, "cannot be read"),
        ("latin.parquet", parquet_of(text=pa.array([b"caf\xe9"]).cast(pa.string(), safe=False)), "not UTF-8"),
    ],
)
def test_unusable_files(tmp_path, capfd, name, content, complaint):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^text: .*; ") as caught:
        list(text_sources.read(str(tmp_path / name)))
    assert complaint in str(caught.value)
    assert capfd.readouterr() == ("", ""), "one error, no noise"


# Reading part of a text


def whole(tokenizer, text, tokens):
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:tokens]


PIECES = st.one_of(
    st.sampled_from(WORDS),
    st.sampled_from(["a" * 700, "=" * 900, " " * 800, "\n" * 50, "é" * 300, "😀" * 40, "ab" * 400]),
    st.text(max_size=30),
)


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(PIECES, max_size=40), repeats=st.integers(1, 6), tokens=st.integers(1, 200))
def test_part_of_a_text_gives_the_tokens_of_the_whole(pieces, repeats, tokens):
    text = " ".join(pieces * repeats)
    for tokenizer in (BYTES, LETTERS):
        assert first_tokens(tokenizer, text, tokens).tolist() == whole(tokenizer, text, tokens)


def test_a_long_text_is_not_read_whole():
    lengths = []

    def spy(text, **options):
        lengths.append(len(text))
        return BYTES(text, **options)

    first_tokens(spy, " ".join(WORDS) * 10_000, 100)
    assert max(lengths) < 10_000


def test_no_special_tokens_and_no_warning(caplog, capfd):
    text = " ".join(WORDS) * 10
    assert BYTES(text, verbose=False)["input_ids"][0] == 0
    assert first_tokens(BYTES, text, 100).tolist() == whole(BYTES, text, 100)
    assert first_tokens(BYTES, text, 100)[0] != 0
    assert "longer than" not in caplog.text + "".join(capfd.readouterr())
