import dataclasses

import pytest
import torch

from mtil.config import (
    AggregationConfig,
    AttentionConfig,
    EncoderConfig,
    HeadConfig,
    ModelConfig,
    PriorConfig,
)
from mtil.models import NetworkOutput, TwoTaskNetwork

ENCODER = EncoderConfig(pretrained=False)
SMALL = ModelConfig(
    encoder=ENCODER,
    decoder_channels=(16, 16, 8, 8),
    attention=AttentionConfig(width=16, num_heads=2),
)
NO_PRIOR = PriorConfig(stem=False, aggregation=False, attention=False)


def variant(**changes):
    return dataclasses.replace(SMALL, **changes)


def attention(**changes):
    return variant(attention=AttentionConfig(width=16, num_heads=2, **changes))


VARIANTS = {
    "full": SMALL,
    "baseline": variant(baseline=True),
    "self": attention(kind="self"),
    "cross_seg_to_cls": attention(kind="cross", direction="seg_to_cls"),
    "both_cls_to_seg": attention(direction="cls_to_seg", fusion="concat", form="location"),
    "three_levels": attention(levels=(32, 16, 8), fusion="sum", form="semantic"),
    "coarse_only": attention(levels=(32,)),
    "no_interaction": attention(kind="none"),
    "no_levels": attention(levels=()),
    "se": variant(aggregation=AggregationConfig(kind="se")),
    "eca": variant(aggregation=AggregationConfig(kind="eca")),
    "concat": variant(aggregation=AggregationConfig(kind="concat")),
    "no_prior": variant(prior=NO_PRIOR),
    "attached_mask": variant(head=HeadConfig(detach_mask=False)),
    "plain_pooling": variant(head=HeadConfig(pooling="plain")),
    "resnet18": variant(encoder=EncoderConfig(name="resnet18", pretrained=False)),
}
SOME = ("full", "baseline", "three_levels", "se")
some_variants = pytest.mark.parametrize("config", [VARIANTS[name] for name in SOME], ids=SOME)
every_variant = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


def network(config=SMALL, *, noise=0.0):
    torch.manual_seed(0)
    model = TwoTaskNetwork(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model


def batch(height=64, width=64):
    torch.manual_seed(1)
    return torch.rand(2, 1, height, width), torch.rand(2, 1, height, width)


def total(output):
    return sum(x.float().square().mean() for x in (output.mask, output.malignant, *output.side))


def assert_equal(got, expected, *, exactly=True):
    tolerance = {"rtol": 0, "atol": 0} if exactly else {"rtol": 1e-4, "atol": 1e-5}
    for ours, theirs in zip(
        (got.mask, got.malignant, *got.side),
        (expected.mask, expected.malignant, *expected.side),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96)])
def test_output_has_the_promised_shapes(height, width):
    output = network().eval()(*batch(height, width))
    assert isinstance(output, NetworkOutput)
    assert output.mask.shape == (2, 1, height, width)
    assert [tuple(side.shape) for side in output.side] == [
        (2, 1, height // stride, width // stride) for stride in (16, 8, 4)
    ]
    assert output.malignant.shape == (2,)


@every_variant
@pytest.mark.parametrize("with_prior", [True, False])
def test_every_parameter_gets_a_gradient(config, with_prior):
    """Distributed training needs a gradient of every parameter, with and without prior maps.

    Without prior maps, the images are not enlarged.
    """
    model = network(config, noise=0.02)
    image, prior = batch()
    zoom = torch.tensor([0.0, 1.5]) if with_prior else None
    total(model(image, prior if with_prior else None, zoom=zoom)).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    if with_prior:
        idle = [name for name, p in model.named_parameters() if not p.grad.any()]
        assert idle == []


@some_variants
def test_no_enlargement_is_an_enlargement_of_zero_and_another_counts(config):
    model = network(config, noise=0.02).eval()
    image, _ = batch()
    plain, zero, zoomed = (
        model(image, zoom=zoom) for zoom in (None, torch.zeros(2), torch.tensor([0.0, 2.0]))
    )
    assert torch.equal(plain.mask, zero.mask)
    assert torch.equal(plain.malignant, zero.malignant)
    assert torch.equal(plain.mask[0], zoomed.mask[0])
    assert not torch.equal(plain.mask[1], zoomed.mask[1])
    assert plain.malignant[1] != zoomed.malignant[1]


@some_variants
def test_contributions_add_up_to_the_logit(config):
    """Without biases the head is homogeneous: gradient times activation sums to the logit."""
    model = network(config, noise=0.02).eval()
    with torch.no_grad():
        model.head.hidden.bias.zero_()
        model.head.output.bias.zero_()
        model.head.output.weight.normal_()
    image, prior = torch.rand(3, 1, 64, 96), torch.rand(3, 1, 64, 96)
    contributions = model.explain(image, prior)
    assert contributions.shape[0] == 3
    assert contributions.shape[-1] / contributions.shape[-2] == 96 / 64
    assert (contributions > 0).any()
    assert (contributions < 0).any()
    with torch.no_grad():
        malignant = model(image, prior).malignant
    torch.testing.assert_close(contributions.sum((1, 2)), malignant, atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


@some_variants
def test_no_prior_is_a_zero_prior_exactly(config):
    image, _ = batch()
    model = network(config, noise=0.02).eval()
    assert_equal(model(image), model(image, torch.zeros_like(image)))


@every_variant
def test_any_prior_is_harmless_at_initialisation(config):
    image, prior = batch(32, 32)
    model = network(config).eval()
    assert_equal(model(image, prior), model(image))


def test_a_trained_network_uses_the_prior_through_each_entry():
    image, prior = batch()
    for entry in ("stem", "aggregation", "attention"):
        config = variant(prior=dataclasses.replace(NO_PRIOR, **{entry: True}))
        model = network(config, noise=0.02).eval()
        assert not torch.equal(model(image, prior).mask, model(image).mask), entry


def test_a_zero_prior_is_the_same_as_having_no_entries():
    image, prior = batch()
    model, blind = network(noise=0.02).eval(), network(variant(prior=NO_PRIOR)).eval()
    loaded = blind.load_state_dict(model.state_dict(), strict=False)
    assert loaded.missing_keys == []
    assert all("prior" in name for name in loaded.unexpected_keys)
    assert_equal(model(image), blind(image, prior), exactly=False)


@pytest.mark.parametrize("kind", ["self", "cross", "both"])
def test_interaction_is_the_identity_at_initialisation(kind):
    image, prior = batch()
    plain, full = network(attention(kind="none")).eval(), network(attention(kind=kind)).eval()
    loaded = full.load_state_dict(plain.state_dict(), strict=False)
    assert loaded.unexpected_keys == []
    assert {name.split(".")[0] for name in loaded.missing_keys} == {"interaction"}
    assert_equal(full(image, prior), plain(image, prior))


def test_the_untrained_network_says_sane_things():
    """Check in training mode: batch statistics normalise the features."""
    image, _ = batch()
    output = network()(image)
    for logits in (output.mask, *output.side):
        assert logits.sigmoid().mean().item() == pytest.approx(0.1, abs=0.05)
    assert output.malignant.sigmoid().sub(0.5).abs().max() < 0.05


def test_the_baseline_has_the_same_encoder_and_nothing_of_the_full_network():
    full, baseline = network(), network(variant(baseline=True))
    assert baseline.encoder.state_dict().keys() == full.encoder.state_dict().keys()
    assert len(baseline.interaction) == 0
    assert baseline.prior_stem is None
    assert not any("gate" in name for name, _ in baseline.named_parameters())
    assert not baseline.head.by_region


def test_the_encoder_holds_none_of_the_new_layers():
    names = {name for name, _ in network().encoder.named_parameters()}
    assert not any("prior" in name for name in names)


@some_variants
def test_weights_load_strictly(config):
    image, prior = batch()
    first, second = network(config, noise=0.02).eval(), network(config).eval()
    second.load_state_dict(first.state_dict(), strict=True)
    assert_equal(second(image, prior), first(image, prior))


def test_channels_last_gives_the_same():
    image, prior = (values.double() for values in batch())
    model = network(noise=0.02).double().eval()
    expected = model(image, prior)
    layout = torch.channels_last
    got = model.to(memory_format=layout)(image.to(memory_format=layout), prior)
    assert_equal(got, expected, exactly=False)


def test_autocast_trains():
    image, prior = batch()
    model = network(noise=0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(image, prior)
        loss = total(output)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_same_seed_gives_the_same_gradients():
    def gradients():
        model = network(noise=0.02)
        total(model(*batch())).backward()
        return [parameter.grad for parameter in model.parameters()]

    for first, second in zip(gradients(), gradients(), strict=True):
        assert torch.equal(first, second)


def test_images_do_not_influence_each_other_in_evaluation():
    image, prior = batch()
    model = network(noise=0.02).eval()
    both, alone = model(image, prior), model(image[:1], prior[:1])
    torch.testing.assert_close(both.mask[:1], alone.mask, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both.malignant[:1], alone.malignant, rtol=1e-4, atol=1e-5)


RANDOM = dataclasses.replace(
    SMALL, encoder=EncoderConfig(pretrained=False, drop_path=0.5), head=HeadConfig(dropout=0.5)
)


def test_random_layers_read_the_given_numbers_in_training_only():
    """Nine blocks of the encoder, then 128 hidden channels of the head."""
    model = network(RANDOM, noise=0.02)
    assert model.num_draws == 9 + 128
    image, prior = batch()
    low, high, some = torch.zeros(2, 137), torch.full((2, 137), 0.99), torch.rand(2, 137)
    with torch.no_grad():
        malignant = {
            name: model(image, prior, draws).malignant
            for name, draws in {"low": low, "high": high, "some": some, "again": some}.items()
        }
        assert torch.equal(malignant["low"], model.head.output.bias[0].expand(2))  # all dropped
        assert torch.equal(malignant["some"], malignant["again"])
        assert not torch.equal(malignant["some"], malignant["high"])
        encoder_only = torch.cat([low[:, :9], high[:, 9:]], dim=1)
        assert not torch.equal(
            model(image, prior, encoder_only).mask, model(image, prior, high).mask
        )
        model.eval()
        assert torch.equal(model(image, prior, low).mask, model(image, prior).mask)
        assert torch.equal(model(image, prior, low).malignant, model(image, prior).malignant)


def test_without_given_numbers_torch_s_generator_decides_in_training():
    model, (image, prior) = network(RANDOM, noise=0.02), batch()

    def run(seed):
        torch.manual_seed(seed)
        with torch.no_grad():
            return model(image, prior).malignant

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


@pytest.mark.slow
def test_a_few_steps_learn_a_bright_square():
    torch.manual_seed(0)
    model = TwoTaskNetwork(SMALL)
    image = torch.rand(4, 1, 64, 64) * 0.3
    mask = torch.zeros(4, 1, 64, 64)
    mask[:2, :, 16:40, 16:40] = 1
    mask[2:, :, 24:56, 20:60] = 1
    image = image + 0.6 * mask
    label = torch.tensor([1.0, 1.0, 0.0, 0.0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        output = model(image)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(output.mask, mask)
        loss += torch.nn.functional.binary_cross_entropy_with_logits(output.malignant, label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
