"""Linear layers in pieces give what they gave, for thin inputs and thick ones, and are themselves again afterwards."""

import pytest
import torch
from torch import nn

from kvstream.thin import MOST_ROWS, all_cores


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 1), (MOST_ROWS, 1), (MOST_ROWS + 1, 1), (1, 40), (0, 3)])
def test_pieces_add_up(two_threads, bias, shape):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(512, 512, bias=bias), nn.Linear(512, 511, bias=bias), nn.Linear(511, 4)).double()
    x = torch.randn(*shape, 512, dtype=torch.float64)
    with torch.no_grad():
        before = layer(x)
        with all_cores(layer):
            assert "forward" in vars(layer[0])
            assert "forward" not in vars(layer[1]), "511 columns cannot be halved"
            assert "forward" not in vars(layer[2]), "too small to be worth it"
            inside = layer(x)
        assert "forward" not in vars(layer[0])
        assert inside.shape == before.shape
        assert torch.allclose(inside, before, atol=1e-12)
        assert torch.equal(layer(x), before)


def test_an_error_inside_leaves_the_model_as_it_was(two_threads):
    layer = nn.Sequential(nn.Linear(512, 512))
    with pytest.raises(RuntimeError, match="inside"), all_cores(layer):
        raise RuntimeError("inside")
    assert "forward" not in vars(layer[0])
