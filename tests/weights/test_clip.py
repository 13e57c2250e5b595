"""CLIP's visual towers, with the attention pooling and without, against definitions in torch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import resfit
from resfit import engines
from resfit.errors import ArgumentError, CheckpointError
from resfit.weights import attention, load
from tests.numeric import relative_error
from tests.torchside import library

torch = pytest.importorskip("torch")
nn = torch.nn

LAYERS, WIDTH = (2, 1, 1, 1), 8


class Bottleneck(nn.Module):
    """Radford et al. 2021: a stride is an average pooling before the last convolution, and before the shortcut's."""

    def __init__(self, into: int, width: int, stride: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = None
        if stride > 1 or into != 4 * width:
            self.downsample = nn.Sequential()
            self.downsample.add_module("-1", nn.AvgPool2d(stride))
            self.downsample.add_module("0", nn.Conv2d(into, 4 * width, 1, bias=False))
            self.downsample.add_module("1", nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.pool(torch.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(50, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, 16)

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1) + self.positional_embedding
        q, k, v = (
            layer(x).unflatten(-1, (-1, 64)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        found = nn.functional.scaled_dot_product_attention(q[:, :, :1], k, v)
        return self.c_proj(found[:, :, 0].flatten(1))


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        half = WIDTH // 2
        self.conv1, self.bn1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = nn.Conv2d(half, half, 3, padding=1, bias=False), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = nn.Conv2d(half, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH)
        into = WIDTH
        for stage, depth in enumerate(LAYERS):
            width, blocks = WIDTH * 2**stage, []
            for block in range(depth):
                blocks.append(Bottleneck(into, width, 2 if stage and not block else 1))
                into = 4 * width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.attnpool = Attention(into)

    def forward(self, x):
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = torch.relu(norm(conv(x)))
        x = nn.functional.avg_pool2d(x, 2)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def randomized(module):
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                *((part.weight, 0.5, 1.5), (part.bias, -0.5, 0.5)),
                *((part.running_mean, -0.5, 0.5), (part.running_var, 0.5, 2.0)),
            ):
                tensor.data.uniform_(low, high, generator=generator)
    return module.eval()


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32)


@pytest.mark.parametrize("whole", [True, False])
def test_openai_names(whole, images, tmp_path):
    tower = randomized(Tower())
    with torch.no_grad():
        expected = tower(torch.from_numpy(images)).numpy().transpose(0, 2, 3, 1)
    state = {f"visual.{name}" if whole else name: tensor for name, tensor in tower.state_dict().items()}
    if whole:
        state |= {"transformer.resblocks.0.attn.in_proj_weight": torch.ones(12, 4), "logit_scale": torch.tensor(4.6)}
        state |= {"token_embedding.weight": torch.ones(7, 4), "positional_embedding": torch.ones(7, 4)}
        state |= {"ln_final.weight": torch.ones(4), "text_projection": torch.ones(4, 16)}
    torch.save(state, tmp_path / "clip.pt")
    body = load.load_source(tmp_path / "clip.pt", preprocess=False)
    received = body(images.transpose(0, 2, 3, 1)).numpy()
    assert received.shape == expected.shape == (2, 2, 3, 256)
    assert relative_error(received, expected) < 1e-5
    assert (body.input_spec.mean[0], body.input_spec.size) == (0.48145466, (224, 224))
    told = " ".join(body.assumptions)
    assert "CLIP's attention pooling" in told
    assert ("CLIP's text tower" in told) == whole


def test_timm_names(images, tmp_path):
    byobnet = library("timm").models.byobnet
    config = byobnet.model_cfgs["resnet50_clip"]
    blocks = tuple(
        dataclasses.replace(block, d=depth, c=4 * WIDTH * 2**stage)
        for stage, (block, depth) in enumerate(zip(config.blocks, LAYERS, strict=True))
    )
    config = dataclasses.replace(config, blocks=blocks, stem_chs=(WIDTH // 2, WIDTH // 2, WIDTH))
    tower = randomized(byobnet.ByobNet(config, num_classes=16, img_size=224))
    with torch.no_grad():
        expected = tower.forward_features(torch.from_numpy(images)).numpy().transpose(0, 2, 3, 1)
    torch.save(tower.state_dict(), tmp_path / "clip.pth")
    body = load.load_source(tmp_path / "clip.pth", preprocess=False)
    assert relative_error(body(images.transpose(0, 2, 3, 1)).numpy(), expected) < 1e-5
    assert any("CLIP's attention pooling: head.pos_embed" in text for text in body.assumptions)


def told_of_pooling(model):
    return any("attention pooling" in text for text in model.assumptions)


@pytest.fixture
def square():
    return np.random.default_rng(1).normal(size=(2, 3, 224, 224)).astype(np.float32)


def test_attention_pooling(square, tmp_path):
    tower = randomized(Tower())
    with torch.no_grad():
        expected = tower.attnpool(tower(torch.from_numpy(square))).numpy()
    torch.save({f"visual.{name}": tensor for name, tensor in tower.state_dict().items()}, tmp_path / "clip.pt")
    whole = resfit.load(tmp_path / "clip.pt", pooling="attention", preprocess=False)
    assert relative_error(whole(square.transpose(0, 2, 3, 1)).numpy(), expected) < 1e-5
    assert not told_of_pooling(whole)
    assert whole.architecture == load.read_source(tmp_path / "clip.pt").spec
    whole.save(tmp_path / "clip.keras")
    again = resfit.load(tmp_path / "clip.keras")
    np.testing.assert_allclose(again(square.transpose(0, 2, 3, 1)), expected, rtol=1e-4, atol=1e-4)
    fast = engines.create(resfit.load(tmp_path / "clip.pt", pooling="attention"), "auto", cache=tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    expected = resfit.load(tmp_path / "clip.pt", pooling="attention")(pixels).numpy()
    assert relative_error(fast.run(pixels), expected) < 1e-4
    with pytest.raises(ArgumentError, match=r"is for feature maps of \(7, 7, 256\)"):
        resfit.load(tmp_path / "clip.pt", pooling="attention", input_shape=(96, 96, 3))
    with pytest.raises(ArgumentError, match="takes the place of the classifier"):
        resfit.load(tmp_path / "clip.pt", pooling="attention", classes=3, include_top=True)


def test_a_source_without_attention_pooling(tmp_path):
    tower = randomized(Tower())
    state = {name: tensor for name, tensor in tower.state_dict().items() if not name.startswith("attnpool")}
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(ArgumentError, match="a source without it"):
        resfit.load(tmp_path / "clip.pt", pooling="attention")
    state |= {f"attnpool.{name}": tensor for name, tensor in Attention(256).state_dict().items()}
    state["attnpool.positional_embedding"] = torch.ones(49, 256)
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="a square's places and one more"):
        resfit.load(tmp_path / "clip.pt")


@pytest.mark.parametrize("separate", [True, False])
def test_attention_pooling_under_timms_names(separate, square, tmp_path):
    layers = library("timm").layers
    pool = layers.AttentionPool2d(256, out_features=16, feat_size=7, head_dim=64, qkv_separate=separate).eval()
    nn.init.normal_(pool.pos_embed)
    tower = randomized(Tower())
    with torch.no_grad():
        expected = pool(tower(torch.from_numpy(square))).numpy()
    found = attention.find({f"head.{name}": tensor.numpy() for name, tensor in pool.state_dict().items()}, "")
    torch.save({k: v for k, v in tower.state_dict().items() if not k.startswith("attnpool")}, tmp_path / "clip.pt")
    body = load.load_source(tmp_path / "clip.pt", preprocess=False, input_shape=(224, 224, 3))
    received = attention.attach(body, found)(square.transpose(0, 2, 3, 1)).numpy()
    assert relative_error(received, expected) < 1e-5
