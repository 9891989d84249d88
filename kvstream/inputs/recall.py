"""Recall by distance: facts planted in a text, each asked for again at a known distance. Knows a tokenizer, no models.

`recall:sentences`, or `recall:` alone, plants sentences such as "The green lion is number 48213." and later asks which
number the green lion is, as passkey and needle tests do: https://arxiv.org/abs/2305.16300,
https://arxiv.org/abs/2404.06654. `recall:strings` plants random strings of the text's own tokens and later repeats
them, for models too small to follow sentences: https://arxiv.org/abs/2209.11895. A source may follow for the text
around them, as in `recall:strings:pg19`; otherwise it is `kjv`.

All is built from tokens, so distances are exact. An answer's tokens stand in the document and are scored like any
others: given the question and those of its tokens that come before.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PREFIX = "recall:"
SENTENCES, STRINGS = "sentences", "strings"
DISTANCES = tuple(64 * 2**power for power in range(8))  # 64 … 8,192
SHARE = 0.5  # of a document that is planted, at most
START = 16  # tokens before the first fact: policies keep the first ones, and with them a fact for ever
CUE, VALUE = 8, 4  # tokens of a string that ask, and that answer
FIRST = (
    *("amber", "black", "brave", "bright", "broken", "calm", "clever", "cold"),
    *("crimson", "dark", "early", "gentle", "golden", "green", "hollow", "quiet"),
)
SECOND = (
    *("apple", "bell", "boat", "bridge", "castle", "clock", "eagle", "forest"),
    *("garden", "hammer", "island", "kettle", "lion", "mirror", "river", "tower"),
)
NAMES = tuple(f"{first} {second}" for first in FIRST for second in SECOND)
FACT, QUESTION, END = "\nThe {} is number", "\nWhich number is the {}? The {} is number", ".\n"
Ids = Sequence[int]


@dataclass(frozen=True)
class Answer:
    """An answer in a document: index of its first token, how many there are, and how far before that token the same
    one stands in the fact."""

    position: int
    tokens: int
    distance: int


@dataclass(frozen=True)
class Pair:
    """A fact and the question after it, as token ids: the value, which is in both, what stands before it in each, and
    what ends both."""

    fact: Ids
    question: Ids
    value: Ids
    end: Ids

    @property
    def after(self) -> int:
        """How many tokens each has from the value on."""
        return len(self.value) + len(self.end)

    @property
    def tokens(self) -> int:
        """How many tokens both have together."""
        return len(self.fact) + len(self.question) + 2 * self.after


def split(spec: str) -> tuple[str, str]:
    """What a source plants, nothing in most, and where its texts come from; `ValueError` for an unknown kind."""
    if not spec.startswith(PREFIX):
        return "", spec
    kind, _, source = spec.removeprefix(PREFIX).partition(":")
    if kind not in ("", SENTENCES, STRINGS) or source.startswith(PREFIX):
        raise ValueError(
            f"text: {spec!r} plants neither sentences nor strings; write recall:sentences or recall:strings, and "
            "after another colon a text to plant them in, if it is not to be kjv"
        )
    return kind or SENTENCES, source or "kjv"


def planted(kind: str, ids_T: np.ndarray, tokenizer: Any, name: str) -> tuple[np.ndarray, tuple[Answer, ...]]:
    """Plant facts and questions in a text: its tokens, (T,), int32, as many as before, and the answers by position.

    The text's tokens move on to make room, and those moved beyond the end are cut. kind, name: seed what is drawn.
    `ValueError` where the tokenizer or the text cannot tell facts apart, or the text is too short.
    """
    draw = random.Random(f"{kind} {name}")
    pairs = sentences(tokenizer, draw) if kind == SENTENCES else strings(ids_T[START:], draw, name)
    return plant(ids_T, pairs, draw)


def sentences(tokenizer: Any, draw: random.Random) -> list[Pair]:
    """A pair for each name, in random order, each with a number of its own."""
    names = draw.sample(NAMES, len(NAMES))
    numbers = [f" {number}" for number in draw.sample(range(10_000, 100_000), len(NAMES))]

    def ids_of(texts: list[str]) -> list[list[int]]:
        return [list(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

    facts, questions = (ids_of([form.format(name, name) for name in names]) for form in (FACT, QUESTION))
    values, [end] = ids_of(numbers), ids_of([END])
    # What all begin with, a space with some tokenizers, is no part of an answer.
    same = [first for first, *_ in itertools.takewhile(lambda each: len(set(each)) == 1, zip(*values))]
    values = [ids[len(same) :] for ids in values]
    if not all(values) or any(len(set(map(tuple, each))) < len(NAMES) for each in (facts, questions, values)):
        raise ValueError(
            f"text: the tokenizer of {tokenizer.name_or_path!r} gives different names or numbers the same tokens, so "
            "no sentence can be asked for; use recall:strings"
        )
    return [Pair(fact + same, question + same, value, end) for fact, question, value in zip(facts, questions, values)]


def strings(ids_T: np.ndarray, draw: random.Random, name: str) -> list[Pair]:
    """As many random strings of a text's tokens, no token twice in one, none beginning as another does."""
    known = np.unique(ids_T).tolist()
    if len(known) < CUE + VALUE:
        raise ValueError(
            f"text: {name!r} has {len(known)} different tokens, a random string needs {CUE + VALUE}; give another text"
        )
    found: dict[tuple[int, ...], Ids] = {}
    while len(found) < len(NAMES):
        string = draw.sample(known, CUE + VALUE)
        found[tuple(string[:CUE])] = string[CUE:]
    return [Pair(cue, cue, value, ()) for cue, value in found.items()]


def plant(ids_T: np.ndarray, pairs: list[Pair], draw: random.Random) -> tuple[np.ndarray, tuple[Answer, ...]]:
    """Place pairs at random, none over another, until `SHARE` of the text is theirs or the next finds no room.

    Distances take turns, the longest first, as it has the fewest places: each has as many pairs, or one more.
    `ValueError` if there is no room for the shortest.
    """
    stems, questions = (max(map(len, each)) for each in zip(*((pair.fact, pair.question) for pair in pairs)))
    after, largest = max(pair.after for pair in pairs), max(pair.tokens for pair in pairs)
    apart = [distance for distance in DISTANCES if distance >= after + questions]
    around = START + stems + after
    if len(ids_T) < (least := max(around + apart[0], round(largest / SHARE))):
        raise ValueError(
            f"lengths: {len(ids_T)} tokens have no room for a fact and a question {apart[0]} tokens after it; "
            f"give {least} or more"
        )
    turns = itertools.cycle([distance for distance in reversed(apart) if around + distance <= len(ids_T)])
    planted_T = np.full(len(ids_T), -1, np.int32)
    room, answers = SHARE * len(ids_T), list[Answer]()
    for pair, distance in zip(pairs, turns):
        room -= pair.tokens
        places = places_for(pair, distance, planted_T < 0)
        if room < 0 or not len(places):
            break
        place = int(draw.choice(places))
        for stem, value_at in ((pair.fact, place), (pair.question, place + distance)):
            whole = [*stem, *pair.value, *pair.end]
            planted_T[value_at - len(stem) :][: len(whole)] = whole
        answers.append(Answer(place + distance, len(pair.value), distance))
    free_T = planted_T < 0
    planted_T[free_T] = ids_T[: free_T.sum()]
    return planted_T, tuple(sorted(answers, key=lambda answer: answer.position))


def places_for(pair: Pair, distance: int, free_T: np.ndarray) -> np.ndarray:
    """Where a fact's value can begin, so that the fact and the question, so far behind it, take free tokens only."""
    value_N = np.arange(START + len(pair.fact), len(free_T) - distance - pair.after + 1)
    taken_T = np.concatenate(([0], np.cumsum(~free_T)))  # before each token
    free_N = np.ones(len(value_N), bool)
    for stem, at_N in ((pair.fact, value_N), (pair.question, value_N + distance)):
        free_N &= taken_T[at_N + pair.after] == taken_T[at_N - len(stem)]
    return value_N[free_N]
