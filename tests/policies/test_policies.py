"""Every policy × the invariants of the base, labels that read back, and errors that say what to do."""

import dataclasses
import importlib
import pkgutil
from contextlib import suppress
from math import inf

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
    StreamingLLM,
    parse_policy,
)
from kvstream.policies.draws import derived_seed, uniform_ranks
from kvstream.policies.fields import fields_of, spanned


def values_of(field):
    """Any value of a field: its words, layers, a share, or a number within its range; small where it has no end."""
    least, most = field.range.least, field.range.most
    if field.choices:
        return st.sampled_from(field.choices)
    if field.kind is tuple:
        return st.lists(st.integers(0, 5), max_size=3).map(tuple)
    if field.kind is float:
        return st.floats(least, min(most, 1000))
    return st.integers(least, most if most < inf else least + 64)


def any_of(kind):
    """Policies of a class at any budget, with any values of its other fields; None where it refuses them together."""
    optional = {each.name for each in dataclasses.fields(kind) if each.default is not dataclasses.MISSING}
    others = [field for field in fields_of(kind) if field.axis or field.name in optional]

    def built(budget, values):
        with suppress(ValueError):
            return kind.at_budget(budget, **values)

    values = st.fixed_dictionaries({field.name: values_of(field) for field in others})
    return st.builds(built, st.integers(1, 5000), values).filter(lambda policy: policy is not None)


OF_EACH = {name: any_of(kind) for name, kind in POLICIES.items()}
ANY_POLICY = st.one_of(*OF_EACH.values())


@pytest.mark.parametrize("name", POLICIES)
def test_any_policy_has_any_value_of_any_field(name):
    """Else the properties below would hold of less than they say; labels show what is not a default."""
    fields = {field.name for field in fields_of(POLICIES[name])}

    @settings(max_examples=50, derandomize=True, deadline=None, database=None)
    @given(OF_EACH[name])
    def draw(policy):
        fields.difference_update(
            {each.name for each in dataclasses.fields(policy) if getattr(policy, each.name) != each.default}
        )

    draw()
    assert not fields


@settings(deadline=None)
@given(ANY_POLICY)
def test_a_label_reads_back_as_its_policy(policy: Policy):
    assert parse_policy(str(policy)) == policy


@settings(deadline=None)
@given(ANY_POLICY, st.integers(0, 10_000))
def test_what_a_layer_keeps_is_bounded_unless_it_is_skipped(policy: Policy, tokens: int):
    policy = policy.in_layers(6)
    for layer in range(6):
        kept, regions = policy.kept(layer, tokens), policy.regions_of(layer)
        assert (regions is None) == (not isinstance(policy, BoundedPolicy) or layer in policy.skip_layers)
        if regions is None:
            assert kept == tokens
        else:  # a layer that is cut as soon as it has its budget never holds that after a step
            cut_at_budget = regions.contested > 0 and policy.shed(regions)[0] == regions.budget
            assert kept == min(tokens, regions.budget - cut_at_budget)


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
    others = {"base", "draws", "fields", "labels", "layer_budgets", "sinks_and_recents", "sizes"}
    assert modules - others == set(POLICIES)
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
        ("l2_compress(0.5,1)", ["prune_after=1", "at least 2"]),
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
