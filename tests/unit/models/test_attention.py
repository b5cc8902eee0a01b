import math

import pytest
import torch

from mtil.config import AttentionConfig
from mtil.models.attention import (
    location_attention,
    merge_heads,
    prior_log_bias,
    semantic_attention,
    split_heads,
)
from mtil.models.interaction import MessageFusion, TaskInteraction

SEG, CLS = 12, 8  # channels of the two streams


def interaction(*, prior=True, noise=0.0, stride=16, **changes):
    torch.manual_seed(0)
    config = AttentionConfig(**{"num_heads": 2, "width": 8, **changes})
    channels = {"segmentation": SEG, "classification": CLS}
    block = TaskInteraction(config, channels, stride=stride, prior=prior)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return block


def inputs(seed=1):
    torch.manual_seed(seed)
    return torch.randn(2, SEG, 4, 6), torch.randn(2, CLS, 4, 6), torch.rand(2, 1, 8, 12)


def test_heads_split_and_merge_back():
    tokens = torch.arange(24.0).view(1, 3, 8)
    split = split_heads(tokens, 2)
    assert split[0, 1, 0].tolist() == [4.0, 5.0, 6.0, 7.0]
    assert torch.equal(merge_heads(split), tokens)


def test_location_attention_worked_by_hand():
    """A query against two keys: logits 0 and ln 3 give weights 1/4 and 3/4."""
    query = torch.tensor([[[[1.0]]]])
    key = torch.tensor([[[[0.0], [math.log(3)]]]])
    value = torch.tensor([[[[8.0], [4.0]]]])
    assert location_attention(query, key, value).item() == pytest.approx(5.0)


def test_the_bias_is_added_to_the_logits():
    query, key = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2, 1)
    value = torch.tensor([[[[8.0], [4.0]]]])
    bias = torch.tensor([[[[0.0, math.log(3)]]]])
    assert location_attention(query, key, value, bias).item() == pytest.approx(5.0)


def test_semantic_attention_worked_by_hand():
    """Two channels over two positions: query channel 0 matches key channel 1, and vice versa."""
    query = torch.tensor([[[[2.0, 0.0], [0.0, 5.0]]]])
    key = torch.tensor([[[[0.0, 3.0], [7.0, 0.0]]]])
    value = torch.tensor([[[[1.0, 10.0], [2.0, 20.0]]]])
    temperature = torch.tensor([[[math.log(3)]]])  # cosines 1 and 0: weights 3/4 and 1/4
    got = semantic_attention(query, key, value, temperature)[0, 0]
    expected = torch.tensor([[7.75, 3.25], [15.5, 6.5]])
    torch.testing.assert_close(got, expected)


def test_semantic_attention_does_not_depend_on_the_order_of_positions():
    query, key, value = torch.randn(3, 1, 2, 9, 4)
    order = torch.randperm(9)
    temperature = torch.ones(2, 1, 1)
    got = semantic_attention(query[..., order, :], key[..., order, :], value, temperature)
    torch.testing.assert_close(got, semantic_attention(query, key, value, temperature))


def test_the_prior_bias_runs_from_none_to_sure():
    prior = torch.tensor([[[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]]])
    assert prior_log_bias(prior, 1).flatten().tolist() == pytest.approx([0.0, 1.0])
    faint = prior_log_bias(torch.full((1, 1, 2, 2), 0.01), 1).item()
    assert faint == pytest.approx(math.log(2) / math.log(101))


@pytest.mark.parametrize("kind", ["self", "cross", "both"])
@pytest.mark.parametrize("form", ["location", "semantic", "both"])
@pytest.mark.parametrize("fusion", ["gate", "concat", "sum"])
def test_it_starts_as_the_identity_and_learns_from_there(kind, form, fusion):
    seg, cls, prior = inputs()
    block = interaction(kind=kind, form=form, fusion=fusion)
    new_seg, new_cls = block(seg, cls, prior)
    assert torch.equal(new_seg, seg)
    assert torch.equal(new_cls, cls)
    (new_seg.square().sum() + new_cls.square().sum()).backward()
    assert all(receiver.scale.grad.abs().sum() > 0 for receiver in block.receiver.values())


@pytest.mark.parametrize("kind", ["self", "cross", "both"])
@pytest.mark.parametrize("form", ["location", "semantic", "both"])
@pytest.mark.parametrize("direction", ["both", "seg_to_cls", "cls_to_seg"])
@pytest.mark.parametrize("fusion", ["gate", "concat", "sum"])
def test_no_parameter_is_idle(kind, form, direction, fusion):
    seg, cls, prior = inputs()
    block = interaction(kind=kind, form=form, direction=direction, fusion=fusion, noise=0.3)
    new_seg, new_cls = block(seg, cls, prior)
    (new_seg.square().sum() + new_cls.square().sum()).backward()
    idle = [n for n, p in block.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize(
    ("kind", "direction", "seg_hears", "cls_hears"),
    [
        ("self", "both", False, False),
        ("cross", "both", True, True),
        ("both", "both", True, True),
        ("both", "seg_to_cls", False, True),
        ("cross", "cls_to_seg", True, False),
    ],
)
def test_information_flows_only_as_configured(kind, direction, seg_hears, cls_hears):
    block = interaction(kind=kind, direction=direction, noise=0.3)
    seg, cls, prior = inputs(1)
    other_seg, other_cls, _ = inputs(2)
    before = block(seg, cls, prior)
    assert torch.equal(before[0], block(seg, other_cls, prior)[0]) is not seg_hears
    assert torch.equal(before[1], block(other_seg, cls, prior)[1]) is not cls_hears


def test_a_task_that_hears_nothing_is_passed_through():
    block = interaction(kind="cross", direction="seg_to_cls", noise=0.3)
    seg, cls, prior = inputs()
    new_seg, new_cls = block(seg, cls, prior)
    assert new_seg is seg
    assert not torch.equal(new_cls, cls)


def test_a_zero_prior_has_no_effect_and_another_has():
    seg, cls, prior = inputs()
    block = interaction(noise=0.3)
    blind = interaction(prior=False)
    blind.load_state_dict(block.state_dict(), strict=False)
    zero = block(seg, cls, torch.zeros_like(prior))
    for got, expected in zip(zero, blind(seg, cls, prior), strict=True):
        torch.testing.assert_close(got, expected)
    assert not torch.allclose(zero[0], block(seg, cls, prior)[0])


def test_positions_look_at_averages_over_cells_of_the_coarse_stride():
    block = interaction(noise=0.3, num_heads=1, width=4)
    tokens = torch.randn(1, 8, SEG)
    with torch.no_grad():
        found = block.offer("segmentation", tokens, 2, 4)
        offered = block.source["segmentation"](tokens)
    left, right = offered[0, [0, 1, 4, 5]].mean(dim=0), offered[0, [2, 3, 6, 7]].mean(dim=0)
    expected = torch.stack([left, right])
    torch.testing.assert_close(found.key[0, 0], offered[0, :, :4])
    torch.testing.assert_close(found.value[0, 0], offered[0, :, 4:])
    torch.testing.assert_close(found.cell_key[0, 0], expected[:, :4])
    torch.testing.assert_close(found.cell_value[0, 0], expected[:, 4:])


@pytest.mark.parametrize(("stride", "cell_stride"), [(32, 32), (16, 16), (32, 16)])
def test_where_cells_would_not_be_coarser_positions_look_at_all(stride, cell_stride):
    block = interaction(noise=0.3, stride=stride, cell_stride=cell_stride)
    with torch.no_grad():
        found = block.offer("classification", torch.randn(1, 8, CLS), 2, 4)
    assert torch.equal(found.cell_key, found.key)
    assert torch.equal(found.cell_value, found.value)


def test_the_gate_starts_half_open_and_is_predicted_per_sample():
    fusion = MessageFusion("gate", 2, 3)
    own, other = torch.ones(2, 2, 1, 1), torch.zeros(2, 2, 1, 1)
    pooled = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    assert fusion(own, other, pooled).flatten().tolist() == [0.5] * 4
    with torch.no_grad():
        fusion.gate.weight[0, 0] = math.log(3)
    assert fusion(own, other, pooled).flatten().tolist() == pytest.approx([0.75, 0.5, 0.25, 0.5])
