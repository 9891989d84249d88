"""The sliding window with re-computation: what plain transformers says of each window by itself."""

import pytest
import torch

from kvstream import Full, recompute, replay


def plainly(model, ids, window, position):
    """−ln p of one token and whether it is the likeliest, from the model's own forward on the tokens before it."""
    before = model.config._attn_implementation  # the model is shared by all tests
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits = model(ids[None, max(0, position - window) : position]).logits[0, -1].double()
    model.set_attn_implementation(before)
    return -float(logits.log_softmax(-1)[ids[position]]), int(logits.argmax()) == int(ids[position])


@pytest.mark.parametrize("family", ["neox", "llama"])
@pytest.mark.parametrize(("window", "every", "tokens_"), [(1, 1, 20), (7, 3, 40), (7, 7, 22), (16, 5, 17), (50, 4, 30)])
def test_each_token_is_told_by_its_own_window(family, window, every, tokens_, tiny_model, tokens):
    ids = tokens(tokens_, 4)
    found = recompute(tiny_model(family, torch.float64), ids, window, every=every)
    assert found.position.tolist() == list(range(every, tokens_, every))
    expected = [plainly(tiny_model(family, torch.float64), ids, window, place) for place in found.position.tolist()]
    assert found.nll_nats.tolist() == pytest.approx([nll for nll, _ in expected], abs=1e-6)
    assert found.correct.tolist() == [hit for _, hit in expected]


def test_many_windows_go_side_by_side_and_a_window_of_all_is_the_full_cache(tiny_neox, tokens):
    model, ids = tiny_neox(torch.float64), tokens(700, 2)
    found = recompute(model, ids, 4)  # 128 windows at once
    for place in (1, 4, 5, 132, 133, 699):
        assert float(found.nll_nats[place - 1]) == pytest.approx(plainly(model, ids, 4, place)[0], abs=1e-6)
    assert torch.allclose(recompute(model, ids, 699).nll_nats, replay(model, ids, Full()), atol=1e-9)


def test_a_sample_of_none_is_empty_and_nonsense_is_refused(tiny_neox, tokens):
    model = tiny_neox()
    none = recompute(model, tokens(5), 3, every=9)
    assert (len(none.position), len(none.nll_nats), len(none.correct)) == (0, 0, 0)
    for given, words in (({"window": 0}, "window=0"), ({"window": 3, "every": 0}, "every=0")):
        with pytest.raises(ValueError, match=f"{words} is not valid"):
            recompute(model, tokens(9), **given)
    with pytest.raises(ValueError, match="at least 2 are needed"):
        recompute(model, tokens(1), 3)
