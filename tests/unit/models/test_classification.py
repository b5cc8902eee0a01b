import pytest
import torch

from mtil.config import HeadConfig
from mtil.models.classification import (
    SHRINKAGE,
    ClassificationHead,
    StreamStage,
    pool_regions,
    region_shares,
)


def head(**changes):
    torch.manual_seed(0)
    return ClassificationHead(HeadConfig(**changes), 8, 2).eval()


def levels():
    torch.manual_seed(1)
    return [torch.randn(2, 8, 2, 2), torch.randn(2, 8, 4, 4)]


def test_regions_are_a_partition():
    weights = region_shares(torch.rand(2, 1, 32, 32), 4)
    assert weights.shape == (2, 3, 4, 4)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 4, 4))


def test_a_ring_surrounds_the_lesion():
    """A lesion of one pixel at stride 4 has a ring of 7 x 7 - 1 pixels."""
    prob = torch.zeros(1, 1, 64, 64)
    prob[..., 32:34, 32:34] = 1
    lesion, ring, background = region_shares(prob, 32)[0].sum(dim=(1, 2)).tolist()
    assert (lesion, ring, background) == (1, 48, 32 * 32 - 49)


def test_pooling_by_region_worked_by_hand():
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    weights = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.5]]]])
    plain = SHRINKAGE * 4
    expected = [(4 + plain) / (2 + SHRINKAGE), (3.5 + plain) / (0.5 + SHRINKAGE)]
    assert pool_regions(x, weights).flatten().tolist() == pytest.approx(expected)


def test_an_empty_region_falls_back_to_the_plain_average_smoothly():
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    corner = torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]])
    shares = [pool_regions(x, corner * size).item() for size in (0, 1e-3, 0.1, 10)]
    assert shares[0] == 4.0
    assert shares == sorted(shares)
    assert shares[1] == pytest.approx(4.0, abs=0.05)
    assert shares[-1] == pytest.approx(7.0, abs=0.05)


@pytest.mark.parametrize("detach", [True, False])
def test_detaching_keeps_the_mask_out_of_the_gradient(detach):
    mask = torch.randn(2, 1, 32, 32, requires_grad=True)
    maps = [level.requires_grad_() for level in levels()]
    sum(head(detach_mask=detach)(maps, mask)).sum().backward()
    assert (mask.grad is None) is detach
    assert maps[-1].grad.any()


def test_only_mask_pooling_looks_at_the_mask():
    here, there = torch.full((2, 2, 1, 32, 32), -20.0)
    here[..., :8, :8], there[..., -8:, -8:] = 20.0, 20.0
    plain, masked = head(pooling="plain"), head(pooling="mask")
    for one, other in zip(plain(levels(), here), plain(levels(), there), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(masked(levels(), here), masked(levels(), there), strict=True):
        assert not torch.allclose(one, other)


def test_the_untrained_head_is_undecided():
    logits = torch.cat(head()(levels(), torch.randn(2, 1, 32, 32)))
    assert logits.shape == (4,)
    assert logits.sigmoid().sub(0.5).abs().max() < 0.05


def test_dropout_takes_a_number_of_every_image_and_channel():
    """Worked by hand: a number below the rate of 1/4 zeroes a channel; else the factor is 4/3."""
    dropping, mask = head(dropout=0.25), torch.randn(2, 1, 32, 32)
    assert dropping.num_draws == 8
    assert head(dropout=0.0).num_draws == 0
    torch.manual_seed(2)
    draws = torch.rand(2, 8)
    draws[0, :2] = torch.tensor([0.2499, 0.25])
    hidden = []
    dropping.hidden.register_forward_hook(lambda *call: hidden.append(call[2].relu()))
    logits = torch.stack(dropping(levels(), mask, draws), dim=1)
    factors = torch.tensor([[4 / 3 if value >= 0.25 else 0.0 for value in row] for row in draws])
    assert 0 < (factors == 0).sum() < 16
    expected = (factors * hidden[0]) @ dropping.output.weight.T + dropping.output.bias
    torch.testing.assert_close(logits, expected)
    plain = head(dropout=0.0)
    assert torch.equal(plain(levels(), mask)[0], plain(levels(), mask, torch.rand(2, 0))[0])


def test_the_stream_adds_the_coarser_level():
    stage = StreamStage(5, 8).eval()
    encoder, coarser = torch.randn(1, 5, 4, 4), torch.full((1, 8, 2, 2), 3.0)
    torch.testing.assert_close(stage(encoder, coarser), stage(encoder, None) + 3)
