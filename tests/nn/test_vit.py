"""Vision transformers: torchvision's own numbers, patches in their places, and what is hidden."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from guides import AmortizedNormal
from ppl_models import (
    VAE,
    Classifier,
    elbo,
    fit,
    freeze,
    log_evidence,
    reconstruction,
    warm_start,
)
from ppl_models.nn import ImageInput, MaskedPatches, VisionTransformer


def small(num_outputs=None, **settings) -> VisionTransformer:
    options = {"patch": 4, "width": 16, "num_layers": 2, "num_heads": 4} | settings
    return VisionTransformer(8, num_outputs, **options).double().eval()


def pixels(rows=5, colours=1):
    return torch.rand(rows, colours * 64, dtype=torch.float64)


@pytest.mark.parametrize("colours", [1, 3])
def test_it_is_torchvisions_on_the_images_of_rows(colours):
    model, x = small(6, colours=colours), pixels(colours=colours)
    images = x.view(5, colours, 8, 8)
    torch.testing.assert_close(model(x), model.network(images))
    assert model(x).shape == (5, 6)
    assert model(x).std(0).min() > 0  # it tells rows apart
    torch.testing.assert_close(model(x), model.network.heads(model.tokens(x)[:, 0]))
    torch.testing.assert_close(model(x)[:2], model(x[:2]))  # each row by itself
    assert model.network.conv_proj.weight.shape == (16, colours, 4, 4)


def test_without_outputs_it_is_the_token_of_the_class():
    model, x = small(), pixels()
    torch.testing.assert_close(model(x), model.tokens(x)[:, 0])


def test_attention_is_that_of_the_layers():
    model, x = small(), pixels()
    found = model.attention(x)
    assert found.shape == (5, 2, 4, 5, 5)
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))

    # The first layer by hand, from the keys and queries of each head.
    encoder = model.network.encoder
    inputs = []
    for layer in encoder.layers:
        layer.self_attention.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    model(x)
    for number, layer in enumerate(encoder.layers):
        attention = layer.self_attention
        both = F.linear(inputs[number], attention.in_proj_weight, attention.in_proj_bias)
        query, key, _ = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in both.chunk(3, -1))
        by_hand = (query @ key.mT / 4**0.5).softmax(-1)
        torch.testing.assert_close(found[:, number], by_hand)


def test_patches_lie_line_by_line_as_tokens_do():
    masked, x = MaskedPatches(small()).double(), pixels(3)
    parts = masked.patches(x)
    assert torch.equal(parts[:, 1], x.view(3, 8, 8)[:, :4, 4:].flatten(1))
    assert torch.equal(parts[:, 2], x.view(3, 8, 8)[:, 4:, :4].flatten(1))
    projected = masked.transformer.network.conv_proj(x.view(3, 1, 8, 8)).flatten(2).mT
    weight = masked.transformer.network.conv_proj.weight.flatten(1)
    torch.testing.assert_close(projected, parts @ weight.T)


@pytest.mark.parametrize("colours", [1, 2])
def test_what_is_hidden_is_not_seen_and_all_else_is(colours):
    masked = MaskedPatches(small(colours=colours)).double()
    x = pixels(1, colours)
    hidden = torch.tensor([[False, True, True, False]])
    slopes = torch.autograd.functional.jacobian(lambda x: masked(x, hidden), x)
    seen = slopes.abs().sum((0, 1, 2, 3))  # of each pixel
    by_patch = masked.patches(seen.unsqueeze(0))[0]  # (P, Q)
    assert (by_patch[~hidden[0]] > 0).all()
    assert (by_patch[hidden[0]] == 0).all()


def test_hidden_patches_are_filled_in_their_places():
    masked, x = MaskedPatches(small(colours=2)).double(), pixels(3, 2)
    hidden = torch.tensor([[True, False, False, True]]).expand(3, 4)
    filled = masked.filled(x, hidden)
    parts, answers = masked.patches(filled), masked(x, hidden)
    assert torch.equal(parts[:, [1, 2]], masked.patches(x)[:, [1, 2]])
    assert torch.equal(parts[:, [0, 3]], answers[:, [0, 3]])
    assert torch.equal(masked.filled(x, ~hidden & hidden), x)


def test_the_loss_is_that_of_the_hidden_patches():
    masked, x = MaskedPatches(small(), share=0.75).double(), pixels()
    torch.manual_seed(3)
    hidden = masked.hide(x)
    assert (hidden.sum(1) == 3).all()
    assert len(hidden.unique(dim=0)) > 1  # each row has its own
    expected = (masked.filled(x, hidden) - x).square().sum(1)
    torch.manual_seed(3)
    torch.testing.assert_close(masked.reconstruction_loss(x), expected)
    assert masked.hide(x).double().mean() == 0.75


def bars(rows=64):
    """Images with a bright half, left or right: a hidden patch is known from those beside it."""
    y = torch.arange(rows) % 2
    x = torch.zeros(rows, 8, 8)
    x[y == 0, :, :4] = 1.0
    x[y == 1, :, 4:] = 1.0
    return x.flatten(1), y


def test_a_pretrained_network_is_the_start_of_a_classifier():
    torch.manual_seed(0)
    x, y = bars()
    masked = MaskedPatches(small().float())
    run = fit(reconstruction(masked), x, epochs=40, batch_size=32, lr=5e-3, seed=0, progress=False)
    assert run.history["loss"][-1] < 1 < 7 < run.history["loss"][0]  # of two patches, one bright

    model = Classifier(64, 2, 16, small().float())
    found = warm_start(model.network, from_=masked.transformer)
    assert not found.kept
    assert not found.left
    assert torch.equal(model.features(x), masked.transformer(x))
    freeze(model, "network")
    fit(elbo(model), (x, y), epochs=60, lr=2e-2, seed=0, progress=False)
    torch.testing.assert_close(model.features(x), masked.transformer(x))
    assert torch.equal(model.predict(x), y)
    evidence = log_evidence(model, None, x, y)
    assert evidence.kind == "exact"
    assert evidence.mean > -0.1


def test_masked_patches_have_no_kind_of_evidence():
    masked, (x, _) = MaskedPatches(small().float()), bars(4)
    with pytest.raises(ValueError, match=r"no density of rows, and so no evidence: .* warm_start"):
        log_evidence(masked, None, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of timm's own
def test_networks_of_timm_work_the_same_way():
    timm = pytest.importorskip("timm")

    def network(outputs):
        settings = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": outputs}
        sizes = {"embed_dim": 16, "depth": 1, "num_heads": 2}
        made = timm.create_model("vit_tiny_patch16_224", **settings, **sizes)
        return ImageInput(made, 8, 8)

    torch.manual_seed(0)
    x, y = bars()
    model = Classifier(64, 2, 4, network(4))
    fit(elbo(model), (x, y), epochs=30, lr=1e-2, seed=0, progress=False)
    assert torch.equal(model.predict(x), y)
    vae, guide = VAE(64, 2), AmortizedNormal(64, 2, network(4))
    run = fit(elbo(vae, guide), x, epochs=60, lr=1e-2, seed=0, progress=False)
    assert run.history["loss"][-1] < 10 < 40 < run.history["loss"][0]


@pytest.mark.parametrize("patch", [5, 0, 16, -4])
def test_patches_that_do_not_divide_the_image(patch):
    message = rf"patch: expected a whole part of side=8, .* got {patch}. Try 1, 2, 4, 8"
    with pytest.raises(ValueError, match=message):
        VisionTransformer(8, patch=patch)


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"num_heads: expected a whole part of width=16, .* got 3"):
        small(num_heads=3)
    with pytest.raises(ValueError, match=r"flat images of 8 x 8 .* 1 colour.*got \(2, 49\)"):
        small()(torch.zeros(2, 49))
    with pytest.raises(ValueError, match=r"flat images of 6 x 4 .* 3 colour.*\(B, 72\)"):
        ImageInput(nn.Identity(), 6, 4, colours=3)(torch.zeros(2, 3, 6, 4))
    for share in (0.0, 1.0, 0.01, 0.99, -1.0, float("nan")):
        with pytest.raises(ValueError, match="share: expected a part of 4 patches"):
            MaskedPatches(small(), share)
