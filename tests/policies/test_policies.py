"""Every policy × the invariants of the base, labels that read back, and errors that say what to do."""

import importlib
import pkgutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kvstream.policies as package
from kvstream.policies import (
    POLICIES,
    BoundedPolicy,
    FixSizeL2,
    Full,
    Policy,
    RecentOnly,
    StreamingLLM,
    parse_policy,
)
from kvstream.policies.draws import derived_seed, uniform_ranks
from kvstream.policies.fields import spanned

POSITIONS = st.sampled_from(["cache", "absolute", "frozen"])
SKIPS = st.lists(st.integers(0, 5), max_size=3).map(tuple)
SIZES = st.integers(1, 5000)
ANY_POLICY = st.one_of(
    st.just(Full()),
    st.builds(StreamingLLM, st.integers(0, 64), SIZES, position=POSITIONS, skip_layers=SKIPS),
    st.builds(RecentOnly, SIZES, position=POSITIONS, skip_layers=SKIPS),
    st.builds(
        FixSizeL2,
        SIZES,
        st.floats(0, 1),
        st.sampled_from(["keep_low", "keep_high", "random"]),
        st.integers(0, 2**63 - 1),
        position=POSITIONS,
        skip_layers=SKIPS,
    ),
)


@settings(deadline=None)
@given(ANY_POLICY)
def test_a_label_reads_back_as_its_policy(policy: Policy):
    assert parse_policy(str(policy)) == policy


@settings(deadline=None)
@given(ANY_POLICY, st.integers(0, 10_000))
def test_what_a_layer_keeps_is_bounded_unless_it_is_skipped(policy: Policy, tokens: int):
    for layer in range(6):
        kept = policy.kept(layer, tokens)
        bounded = isinstance(policy, BoundedPolicy) and layer not in policy.skip_layers
        assert kept == (min(tokens, policy.regions.budget) if bounded else tokens)


@pytest.mark.parametrize("name", POLICIES)
def test_policies_span_axes_at_their_budget(name):
    axes = {"start_sizes": (0, 2), "strategies": ("keep_low", "random"), "positions": ("cache", "frozen")}
    found = spanned(POLICIES[name], 256, axes | {"skip_layers": (1,)})
    assert len(set(found)) == len(found) > 0
    for policy in found:
        if policy.regions:
            assert policy.regions.budget == 256
            assert policy.skip_layers == (1,)


def test_every_module_of_policies_is_registered():
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert modules - {"base", "draws", "fields", "labels", "layer_budgets", "sizes"} == set(POLICIES)
    for name, policy in POLICIES.items():
        module = importlib.import_module(f"kvstream.policies.{name}")
        assert policy.__module__ == module.__name__
        assert "http" in module.__doc__ or name == "full", "a policy names its paper"


def test_labels_are_short_where_nothing_special_is_asked():
    assert str(Full()) == "full"
    assert str(StreamingLLM(4, 252)) == "streaming_llm(4,252)"
    assert str(FixSizeL2(256, 0.7, "keep_low", skip_layers=(1, 0))) == "fix_size_l2(256,0.7,keep_low,skip_layers=(0,1))"


@pytest.mark.parametrize(("budget", "ratio", "recent"), [(256, 0.7, 179), (100, 0.29, 29), (10, 0.7, 7), (3, 0.0, 0)])
def test_the_protected_share_is_rounded_down_exactly(budget, ratio, recent):
    regions = FixSizeL2(budget, ratio, "keep_low").regions
    assert (regions.recent, regions.contested) == (recent, budget - recent)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("streaming_llm(-1,4)", ["start_size=-1", "at least 0"]),
        ("streaming_llm(0,0)", ["0 sinks, 0 contested and 0 recent", "in all at least 1"]),
        ("streaming_llm(4)", ["takes start_size, recent_size"]),
        ("streaming_llm(4,252,flavour=3)", ["takes start_size, recent_size"]),
        ("streaming_llm(4,start_size=4)", ["takes start_size, recent_size"]),
        ("recent_only(0)", ["window_size=0", "at least 1"]),
        ("recent_only(True)", ["window_size=True", "whole number"]),
        ("recent_only(8,position=middle)", ["position='middle'", "cache, absolute, frozen"]),
        ("recent_only(8,skip_layers=1)", ["skip_layers=1", "tuple"]),
        ("recent_only(8,skip_layers=(-1,))", ["skip_layers=(-1,)", "0 or more"]),
        ("fix_size_l2(8,nan,keep_low)", ["keep_ratio='nan'", "from 0 to 1"]),
        ("fix_size_l2(8,0.5,keep_all)", ["strategy='keep_all'", "keep_low, keep_high, random"]),
        ("fix_size_l2(8,0.5,random,seed=-1)", ["seed=-1", "at least 0"]),
        ("fix_size_l2(8,0.5,random,seed=2**70)", ["cannot be read", "name(value"]),
        ("h2o(8,6,start_size=3)", ["3 sinks, -1 contested and 6 recent", "give each 0 or more"]),
        ("keydiff(8,9)", ["-1 contested and 9 recent"]),
        ("snapkv(160,32,4)", ["kernel=4", "an odd number"]),
        ("snapkv(160,64,5,32)", ["window=64", "at most 32"]),
        ("snapkv(159)", ["budget=159", "at least 160, window + every"]),
        ("l2_compress(1.5,8)", ["keep_ratio=1.5", "from 0 to 1"]),
        ("h3o(256)", ["unknown name 'h3o'", "choose one of full"]),
        ("", ["cannot be read", "name(value"]),
        ("full()()", ["cannot be read", "name(value"]),
        ("__import__('os').system('true')", ["cannot be read", "name(value"]),
        ("streaming_llm(*[4,252])", ["cannot be read", "name(value"]),
        ("(" * 500, ["cannot be read", "name(value"]),
        ("full\0", ["cannot be read", "name(value"]),
    ],
)
def test_what_is_invalid_is_named_with_its_remedy(label, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the words are checked below
        parse_policy(label)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_draws_depend_on_their_coordinates_alone():
    whole = uniform_ranks(7, 2, 4, range(0, 100), 33)
    assert np.array_equal(whole[:, 40:], uniform_ranks(7, 2, 4, range(40, 100), 33))
    assert np.array_equal(whole[:2], uniform_ranks(7, 2, 2, range(0, 100), 33))
    for other in (uniform_ranks(8, 2, 4, range(100), 33), uniform_ranks(7, 3, 4, range(100), 33)):
        assert (other != whole).mean() > 0.9
    assert not np.array_equal(whole[0], whole[1])


def test_draws_are_uniform():
    counts = np.bincount(uniform_ranks(0, 0, 50, range(2000), 10).ravel(), minlength=10)
    assert np.abs(counts / 10_000 - 1).max() < 0.05


def test_documents_draw_apart():
    assert derived_seed(0, "Genesis") != derived_seed(0, "Exodus") != derived_seed(1, "Exodus")
    assert 0 <= derived_seed(2**63 - 1, "") < 2**63
