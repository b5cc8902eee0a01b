import pytest
import torch
import torch.nn.functional as F

from mtil.config import AggregationConfig
from mtil.models.aggregation import Aggregation, ChannelGate, pool_under, scale_sources

KINDS = ["fab", "se", "eca", "concat"]


def block(kind, *, prior=True):
    torch.manual_seed(0)
    return Aggregation(AggregationConfig(kind=kind), 6, 10, 8, prior=prior)


def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 6, 8, 12), torch.randn(2, 10, 4, 6), torch.rand(2, 1, 16, 24)


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_has_the_skip_connections_size(kind):
    assert block(kind)(*inputs()).shape == (2, 8, 8, 12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_parameter_is_idle(kind):
    aggregation = block(kind)
    with torch.no_grad():
        for parameter in aggregation.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    aggregation(*inputs()).square().sum().backward()
    idle = [n for n, p in aggregation.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("kind", ["fab", "se", "eca"])
def test_the_gate_starts_by_changing_nothing_whatever_the_prior(kind):
    gate = ChannelGate(AggregationConfig(kind=kind), 8, prior=True)
    encoder, decoder = torch.randn(2, 8, 8, 8), torch.randn(2, 8, 4, 4)
    logits = gate(encoder, decoder, torch.rand(2, 1, 16, 16))
    assert logits.shape == (2, 2, 8)
    assert not logits.any()
    same_encoder, same_decoder = scale_sources(kind, logits, encoder, decoder)
    assert torch.equal(same_encoder, encoder)
    assert torch.equal(same_decoder, decoder)


@pytest.mark.parametrize("kind", ["fab", "se", "eca"])
def test_a_gate_starts_as_plain_concatenation(kind):
    plain, gated = block("concat").eval(), block(kind).eval()
    gated.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(gated(*inputs()), plain(*inputs()))


def test_the_shortcut_is_the_sum_of_the_sources():
    aggregation = block("concat").eval()
    encoder, decoder, prior = inputs()
    up = F.interpolate(decoder, scale_factor=2, mode="bilinear", align_corners=False)
    first, second = aggregation.from_encoder(encoder), aggregation.from_decoder(up)
    expected = F.relu(first + second + aggregation.refine(torch.cat([first, second], dim=1)))
    torch.testing.assert_close(aggregation(encoder, decoder, prior), expected)


@pytest.mark.parametrize("kind", ["fab", "se", "eca"])
def test_the_gate_does_not_depend_on_the_magnitude_of_the_features(kind):
    """Large features would otherwise saturate the gate (seen: logits of 10 to 40)."""
    aggregation = block(kind)
    with torch.no_grad():
        for parameter in aggregation.gate.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    encoder, decoder, prior = inputs()
    small, large = aggregation(encoder, decoder, prior), aggregation(40 * encoder, decoder, prior)
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-3)


def test_fab_shares_two_between_the_sources_of_a_channel():
    logits = torch.tensor([[[100.0, 0.0], [-100.0, 0.0]]])
    encoder, decoder = torch.ones(1, 2, 2, 2), torch.ones(1, 2, 1, 1)
    first, second = scale_sources("fab", logits, encoder, decoder)
    assert first[0, :, 0, 0].tolist() == [2.0, 1.0]
    assert second[0, :, 0, 0].tolist() == [0.0, 1.0]


def test_se_scales_each_channel_on_its_own():
    logits = torch.tensor([[[100.0], [100.0]]])
    ones = torch.ones(1, 1, 2, 2)
    assert [x.mean().item() for x in scale_sources("se", logits, ones, ones)] == [2.0, 2.0]


def test_a_zero_prior_leaves_the_logits_alone_even_when_trained():
    gate = ChannelGate(AggregationConfig(), 8, prior=True)
    torch.nn.init.normal_(gate.from_prior.weight)
    encoder, decoder = torch.randn(2, 8, 8, 8), torch.randn(2, 8, 4, 4)
    assert not gate(encoder, decoder, torch.zeros(2, 1, 16, 16)).any()
    assert gate(encoder, decoder, torch.ones(2, 1, 16, 16)).any()


def test_pooling_under_a_map_worked_by_hand():
    """Weights 1, 1/2, 1/2, 0 after averaging 2x2 cells: (8 + 2 + 1 + 0) / 2."""
    prior = torch.tensor([[[[1.0, 1, 1, 0], [1, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]]]])
    x = torch.tensor([[[[8.0, 4.0], [2.0, 100.0]]]])
    assert pool_under(prior, x).item() == pytest.approx(5.5)
    assert pool_under(torch.zeros_like(prior), x).item() == 0.0
    faint = pool_under(prior * 0.01, x).item()
    assert faint == pytest.approx(0.11)
