"""Networks: the paper's equations, independence of padding and company, memory, mixed precision."""
import copy
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from formula_gan.core import FormulaGanError
from formula_gan.sagan import (BatchNormReLU, CellVerdict, ConditionalBatchNorm, Discriminator, DownBlock, Generator,
                               NormReLU, SelfAttention, SpectralNorm, UpBlock, UpsampleConv, attend_fused, attend_plain,
                               attend_sliced, cell_weights, conv, folded, generator_config, hinge_discriminator,
                               hinge_discriminator_cells, hinge_generator, hinge_generator_cells, load_generator,
                               mask_pyramid, save_generator, spectral, standing_statistics, unfolded, weighted_mean)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def lived_in(model):
    "Attention on, biases and statistics far from their start: nothing that should be masked is zero by luck."
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1: p.normal_(std=0.3)
            if name.endswith("gamma"): p.fill_(1)
        for m in model.modules():
            if isinstance(m, BatchNormReLU): m.running_mean.normal_(), m.running_var.uniform_(0.5, 2)
    return model


def padded(x, bottom, right, junk=0.7):
    mask = F.pad(torch.ones_like(x), (0, right, 0, bottom))
    return F.pad(x, (0, right, 0, bottom)) + junk * (1 - mask), mask


# ---- spectral normalisation

@pytest.mark.parametrize("shape", [(12, 7), (6, 5, 3, 3)])
def test_spectral_norm_equals_torch(shape):
    ours = spectral(torch.nn.Linear(7, 12) if len(shape) == 2 else torch.nn.Conv2d(5, 6, 3)).eval()
    raw = ours.parametrizations.weight.original
    with torch.no_grad(): raw.add_(0.3 * torch.randn(shape))
    for _ in range(100): ours.train().weight
    ours.eval()
    theirs = torch.nn.Linear(7, 12) if len(shape) == 2 else torch.nn.Conv2d(5, 6, 3)
    with torch.no_grad(): theirs.weight.copy_(raw)
    torch.nn.utils.parametrizations.spectral_norm(theirs, n_power_iterations=100).eval()
    g = torch.randn(shape)
    ours.weight.backward(g), theirs.weight.backward(g)
    torch.testing.assert_close(ours.weight, theirs.weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(raw.grad, theirs.parametrizations.weight.original.grad, atol=1e-4, rtol=1e-4)
    assert torch.linalg.matrix_norm(ours.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_every_weight_but_the_conditional_norms_is_normalised():
    for model in (Generator(8, skip=True, fold=2), Discriminator(8, fold=2, cells=True)):
        for name, m in model.named_modules():
            if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear, torch.nn.Embedding)):
                assert hasattr(m, "parametrizations") != (".norm" in name), name


def test_spectral_norm_is_exact_under_autocast_and_survives_two_forwards():
    layer = conv(16, 16)
    with torch.no_grad(): layer.parametrizations.weight.original.add_(0.1 * torch.randn(16, 16, 3, 3))
    layer.eval()
    exact = layer.weight
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(layer.weight, exact)
    layer.train()
    (layer(torch.randn(1, 16, 4, 4)).sum() + layer(torch.randn(1, 16, 4, 4)).sum()).backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


def test_memory_format_does_not_change_values():
    layer = conv(8, 8).eval()
    x = torch.randn(1, 8, 5, 5)
    contiguous = layer(x)
    torch.testing.assert_close(layer.to(memory_format=torch.channels_last)(x), contiguous, atol=1e-5, rtol=1e-5)


# ---- self-attention

def naive_attention(layer, x):
    "Eqs 3-6 position by position."
    kernel = lambda l: l.weight[:, :, 0, 0]
    flat = x.flatten(2)
    f, g, h = (kernel(l) @ flat for l in (layer.f, layer.g, layer.h))
    y = torch.empty_like(flat)
    for b in range(len(x)):
        for j in range(flat.shape[2]):
            s = torch.stack([f[b, :, i] @ g[b, :, j] for i in range(flat.shape[2])])
            beta = s.exp() / s.exp().sum()
            y[b, :, j] = layer.gamma * sum(beta[i] * h[b, :, i] for i in range(flat.shape[2])) + flat[b, :, j]
    return y.view_as(x)


@pytest.mark.parametrize("limit", [0, 2**24])
def test_attention_equals_the_equations(limit):
    layer = SelfAttention(16).eval()
    layer.plain_limit = limit
    with torch.no_grad(): layer.gamma.fill_(0.7)
    x = 2 * torch.randn(2, 16, 3, 5)
    torch.testing.assert_close(layer(x), naive_attention(layer, x), atol=1e-5, rtol=1e-4)
    with torch.no_grad(): torch.testing.assert_close(layer(x), naive_attention(layer, x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("most", [1, 39, 41, 300, 10**6])
def test_slices_leave_nothing_out(most):
    f, g, h = (torch.randn(3, 40, k) for k in (3, 3, 16))
    torch.testing.assert_close(attend_sliced(f, g, h, most), attend_plain(f, g, h))


def test_slices_keep_float32_scores_under_autocast():
    f, g, h = (torch.randn(2, 200, k) for k in (17, 17, 32))
    exact = attend_plain(f.bfloat16().float(), g.bfloat16().float(), h.bfloat16().float())
    error = lambda o: (o.float() - exact).abs().max().item()
    with torch.autocast("cpu", torch.bfloat16):
        low = [t.bfloat16() for t in (f, g, h)]
        sliced = attend_sliced(*low)
        assert sliced.dtype == torch.bfloat16 and error(sliced) < error(attend_plain(*low)) / 2


def test_fused_and_plain_give_the_same_gradients():
    inputs = [torch.randn(2, 40, k) for k in (3, 3, 16)]
    grads = []
    for attend in (attend_plain, attend_fused):
        leaves = [t.clone().requires_grad_() for t in inputs]
        attend(*leaves).square().sum().backward()
        grads.append([t.grad for t in leaves])
    for a, b in zip(*grads): torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_attention_starts_as_the_identity():
    layer = SelfAttention(32)
    x = torch.randn(2, 32, 4, 6)
    assert torch.equal(layer(x), x)
    layer(x).square().sum().backward()
    assert layer.gamma.grad.abs() > 0


@pytest.mark.parametrize("limit", [0, 2**24])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_attention_ignores_padding(limit, dtype, grad):
    layer = SelfAttention(8).eval()
    layer.plain_limit = limit
    with torch.no_grad(): layer.gamma.fill_(1)
    x = torch.randn(1, 8, 5, 7)
    wide, mask = padded(x, 3, 4, junk=5.0)
    mask = mask[:, :1]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None), torch.set_grad_enabled(grad):
        a, b = layer(x).float(), layer(wide, mask).float()[:, :, :5, :7]
    torch.testing.assert_close(a, b, atol=1e-5 if dtype is None else 2e-2, rtol=1e-5 if dtype is None else 2e-2)


def test_attention_memory_is_linear():
    """40,000 positions, of which the scores alone would be 6.4 GB (sliced), and 10,000 with a gradient (0.4 GB, fused).
    The layer is not in channels_last, so that the kernel is handed the least convenient memory order."""
    program = """if True:
        import resource, torch
        from formula_gan.sagan import SelfAttention
        torch.set_num_threads(1)
        layer = SelfAttention(8)
        layer.plain_limit = 0
        attend = lambda side: layer(torch.randn(1, 8, side, side), torch.ones(1, 1, side, side))
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        attend(8).sum().backward()
        before = peak()
        attend(100).sum().backward()
        middle = peak()
        with torch.no_grad(): attend(200)
        print(middle - before, peak() - before)
    """
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    with_gradient, large = map(float, run.stdout.split())
    assert with_gradient < 60 and large < 60, f"{with_gradient:.0f} and {large:.0f} MB"


# ---- normalisation

def norm_relu_plain(x, gain, bias, mask, eps=1e-5):
    mean = (x * mask).sum((0, 2, 3), keepdim=True) / mask.sum()
    var = ((x - mean) ** 2 * mask).sum((0, 2, 3), keepdim=True) / mask.sum()
    return F.relu(gain[:, :, None, None] * (x - mean) / (var + eps).sqrt() + bias[:, :, None, None]) * mask


def some_mask():
    mask = torch.ones(3, 1, 6, 8)
    mask[0, :, :, 5:] = 0
    mask[1, :, 4:] = 0
    return mask


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_norm_gradients(with_mask, channels_last):
    mask = some_mask() if with_mask else torch.ones(3, 1, 6, 8)
    x = (torch.randn(3, 4, 6, 8) + 1) * mask
    if channels_last: x = x.to(memory_format=torch.channels_last)
    inputs = [x, torch.rand(3, 4) + 0.5, torch.randn(3, 4)]
    weight = torch.randn(3, 4, 6, 8)
    results = []
    fused = lambda *i: NormReLU.apply(*i, mask if with_mask else None, 1e-5)[0]
    plain = lambda *i: norm_relu_plain(*i, mask)
    for function in (fused, plain):
        leaves = [t.clone().requires_grad_() for t in inputs]
        y = function(*leaves)
        (y * weight).sum().backward()
        results.append([y.detach(), leaves[0].grad * mask, leaves[1].grad, leaves[2].grad])
    for ours, wanted in zip(*results): torch.testing.assert_close(ours, wanted, atol=2e-5, rtol=1e-4)


def test_padding_stays_out_of_the_statistics():
    mask = some_mask()
    x = (3 * torch.randn(3, 4, 6, 8) + 2) * mask
    norm = BatchNormReLU(4)
    norm(x, torch.ones(3, 4), torch.zeros(3, 4), mask)
    values = x.permute(1, 0, 2, 3)[:, mask[:, 0] == 1]
    torch.testing.assert_close(norm.running_mean, 0.1 * values.mean(1))
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * values.var(1), atol=1e-4, rtol=1e-4)
    more = BatchNormReLU(4)
    more(F.pad(x, (0, 16, 0, 16)), torch.ones(3, 4), torch.zeros(3, 4), F.pad(mask, (0, 16, 0, 16)))
    torch.testing.assert_close(more.running_var, norm.running_var)


def test_statistics_follow_with_torchs_momentum():
    ours, theirs = BatchNormReLU(4), torch.nn.BatchNorm2d(4)
    for _ in range(3):
        x = torch.randn(2, 4, 5, 5) * 3 + 1
        torch.testing.assert_close(ours(x, torch.ones(2, 4), torch.zeros(2, 4)), F.relu(theirs(x)), atol=1e-5,
                                   rtol=1e-4)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(ours.eval()(x, torch.ones(2, 4), torch.zeros(2, 4)), F.relu(theirs.eval()(x)), atol=1e-5,
                               rtol=1e-4)


@pytest.mark.parametrize("fold", [1, 2])
def test_gain_is_near_one_at_the_start(fold):
    generator = Generator(8, fold=fold)
    pieces = torch.randn(64, 120).split(generator.z_split, 1)[1:]
    label = generator.embedding(torch.arange(64) % 2)
    for block, piece in zip(generator.decoder, pieces):
        for norm in (block.norm1, block.norm2):
            gain, bias = norm.gain_and_bias(torch.cat([label, piece], 1))
            assert abs(gain.mean() - 1) < 0.05 and gain.min() > 0.4 and bias.abs().max() < 0.6
            assert gain.std(0).min() > 0.03  # and z is felt in every channel


# ---- blocks

def test_upsampling_folded_into_the_convolution():
    layer = UpsampleConv(6, 4).eval()
    x = torch.randn(2, 6, 3, 5)
    torch.testing.assert_close(layer(x), layer.conv(F.interpolate(x, scale_factor=2)), atol=1e-5, rtol=1e-4)
    assert "taps" not in " ".join(layer.state_dict())


def test_blocks_halve_and_double():
    x = torch.randn(2, 8, 4, 6)
    assert DownBlock(8, 16)(x).shape == (2, 16, 2, 3)
    assert UpBlock(8, 4, 10)(x, torch.randn(2, 10)).shape == (2, 4, 8, 12)


def test_only_the_first_block_lacks_preactivation():
    for blocks in (Generator(8).encoder, Discriminator(8).blocks, Generator(8, fold=2).encoder):
        assert [b.preactivation for b in blocks] == [False, True, True, True]
    assert torch.equal(DownBlock(4, 4).eval().conv1.bias, torch.zeros(4))


# ---- generator

@pytest.mark.parametrize("height, width", [(16, 16), (37, 53), (5, 9), (64, 80), (120, 101)])
@pytest.mark.parametrize("fold", [1, 2, 3])
def test_generator_keeps_the_size(height, width, fold):
    y = Generator(8, skip=True, fold=fold)(torch.rand(2, 1, height, width), torch.randn(2, 120), torch.tensor([0, 1]))
    assert y.shape == (2, 1, height, width) and y.dtype == torch.float32 and 0 <= y.min() and y.max() <= 1


def test_generator_uses_all_of_z_and_the_class():
    generator = lived_in(Generator(8, z_dim=122))
    assert sum(generator.z_split) == 122
    x, z = torch.rand(1, 1, 32, 48), torch.randn(1, 122, requires_grad=True)
    generator.eval()(x, z, torch.tensor([1])).square().sum().backward()
    assert (z.grad != 0).all()
    with torch.no_grad(): a, b = (generator(x, z, torch.tensor([c])) for c in (0, 1))
    assert (a - b).abs().max() > 1e-4


@pytest.mark.parametrize("height, width", [(37, 53), (48, 64), (5, 9)])
@pytest.mark.parametrize("bottom, right", [(0, 0), (16, 0), (0, 16), (48, 48), (11, 30)])
@pytest.mark.parametrize("skip, fold", [(False, 1), (True, 1), (True, 2)])
def test_generator_ignores_padding_and_company(height, width, bottom, right, skip, fold):
    generator = lived_in(Generator(8, skip=skip, fold=fold)).eval()
    x, z, c = torch.rand(1, 1, height, width), torch.randn(2, 120), torch.tensor([1, 0])
    wide, mask = padded(x, bottom, right)
    with torch.no_grad():
        alone = generator(x, z[:1], c[:1])
        both = generator(torch.cat([wide, torch.rand_like(wide)]), z, c, torch.cat([mask, torch.ones_like(mask)]))
    torch.testing.assert_close(both[:1, :, :height, :width], alone, atol=1e-4, rtol=0)
    assert (both[:1] * (1 - mask)).abs().max() == 0


@pytest.mark.parametrize("skip, fold", [(False, 1), (True, 1), (True, 2)])
def test_padding_does_not_change_generator_training(skip, fold):
    """Images and statistics in every draw; gradients in most of them, since a ReLU's input that is nearly 0 may round
    to either side of it, which moves the gradient of that draw by up to a percent."""
    moved = []
    for draw in range(5):
        torch.manual_seed(draw)
        generator = lived_in(Generator(8, skip=skip, fold=fold))
        x, z, c = torch.rand(2, 1, 37, 53), torch.randn(2, 120), torch.tensor([1, 0])
        results = []
        for bottom, right in ((0, 0), (43, 27)):
            model = copy.deepcopy(generator)
            wide, mask = padded(x, bottom, right)
            y = model(wide, z, c, mask)[:, :, :37, :53]
            y.square().mean().backward()
            gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
            results.append([y.detach(), model.norm.running_var, gradient])
        moved.append([((a - b).norm() / a.norm()).item() for a, b in zip(*results)])
    images, statistics, gradients = zip(*moved)
    assert max(images) < 2e-3, moved
    assert max(statistics) < 2e-3, moved
    assert sorted(gradients)[2] < 2e-3, moved
    assert max(gradients) < 0.05, moved


@pytest.mark.parametrize("skip, fold", [(False, 1), (True, 2)])
def test_standing_statistics_are_the_mean_over_batches(skip, fold):
    generator = Generator(8, skip=skip, fold=fold).eval()
    batches = [(torch.rand(2, 1, 32, 64), torch.randn(2, 120), torch.tensor([0, 1]), None) for _ in range(3)]
    standing_statistics(generator, batches)
    norm = generator.norm
    assert not generator.training and norm.momentum == 0.1 and (norm.running_var != 1).all()
    means = []
    handle = norm.register_forward_pre_hook(lambda m, inputs: means.append(inputs[0].mean((0, 2, 3))))
    generator.train()
    with torch.no_grad():
        for batch in batches: generator(*batch)
    handle.remove()
    again = standing_statistics(generator, batches).norm.running_mean
    torch.testing.assert_close(again, torch.stack(means).mean(0), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("fold", [1, 2])
def test_noise_does_not_drown_the_content_at_the_start(fold):
    generator = Generator(32, fold=fold)
    small = torch.zeros(4, 1, 48, 128)
    for n in range(4): small[n, 0, 10:38, 10 + n:12 + n] = small[n, 0, 20 + n:22 + n, 5:110] = 1
    x = F.interpolate(small, scale_factor=fold)
    with torch.no_grad():
        h = folded(x, fold)
        for block in generator.encoder: h = block(h)
        noise = generator.noise_gain * generator.noise(torch.randn(64, generator.z_split[0]))
    assert noise.std() < 3 * (h - h.mean((0, 2, 3), keepdim=True)).std()


def test_skips_are_off_unless_asked_for():
    assert Generator(8).skips is None
    generator = Generator(8, skip=True)
    x, z, c = torch.rand(2, 1, 32, 48), torch.randn(2, 120), torch.tensor([0, 1])
    generator(x, z, c).square().mean().backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())
    assert all(s.conv.parametrizations.weight.original.grad.abs().max() > 0 for s in generator.skips)


# ---- discriminator

@pytest.mark.parametrize("height, width", [(37, 53), (48, 64), (5, 9)])
@pytest.mark.parametrize("bottom, right", [(0, 0), (16, 0), (0, 16), (48, 48), (11, 30)])
@pytest.mark.parametrize("training, fold", [(True, 1), (False, 1), (True, 2)])
def test_logit_ignores_padding_and_company(height, width, bottom, right, training, fold):
    discriminator = lived_in(Discriminator(8, fold=fold)).train(training)
    if training:  # freeze the power iteration, which otherwise moves between two calls
        for m in discriminator.modules():
            if isinstance(m, SpectralNorm): m.eval()
    x, c = torch.rand(1, 1, height, width), torch.tensor([1])
    wide, mask = padded(x, bottom, right)
    with torch.no_grad():
        alone = discriminator(x, c)
        both = discriminator(torch.cat([wide, torch.rand_like(wide)]), torch.tensor([1, 0]),
                             torch.cat([mask, torch.ones_like(mask)]))
    assert both.shape == (2,) and abs(alone[0] - both[0]) < 1e-4


def test_projection_is_per_sample():
    """The released code's discriminator stays at a loss of 2 here: stripes with the right class against the same with
    the wrong one."""
    c = torch.arange(16) % 2
    rows = (torch.arange(32).view(1, 1, 32, 1) + torch.arange(16).view(16, 1, 1, 1)).div(4, rounding_mode="floor")
    stripes = rows.remainder(2).float().expand(-1, 1, 32, 32)
    x = torch.where(c.view(-1, 1, 1, 1) == 0, stripes, stripes.transpose(2, 3))
    discriminator = Discriminator(8)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3, betas=(0.0, 0.999))
    for _ in range(40):
        loss = hinge_discriminator(*discriminator(torch.cat([x, x]), torch.cat([c, 1 - c])).chunk(2))
        loss.backward(), optimizer.step(), optimizer.zero_grad()
    assert loss < 0.5


def test_logit_is_a_mean_over_the_image():
    "Twice the same picture side by side, without anything that looks across the seam, scores as once."
    discriminator = Discriminator(8, attention=False).eval()
    for block in discriminator.blocks:
        for layer in (block.conv1, block.conv2):
            with torch.no_grad(): layer.parametrizations.weight.original[:, :, :, [0, 2]] = 0
    x = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(discriminator(x, torch.tensor([0])),
                               discriminator(torch.cat([x, x], 3), torch.tensor([0])))


def test_gain_multiplies_the_logit():
    plain, loud = Discriminator(8).eval(), Discriminator(8, gain=32).eval()
    loud.load_state_dict(plain.state_dict())
    x, c = torch.rand(2, 1, 32, 32), torch.tensor([0, 1])
    torch.testing.assert_close(loud(x, c), 32 * plain(x, c))


def test_second_derivatives_for_a_gradient_penalty():
    discriminator = lived_in(Discriminator(8))
    x = torch.rand(2, 1, 32, 32, requires_grad=True)
    (g,) = torch.autograd.grad(discriminator(x, torch.tensor([0, 1])).sum(), x, create_graph=True)
    g.square().sum().backward()
    assert discriminator.blocks[0].conv1.parametrizations.weight.original.grad.abs().max() > 0


# ---- verdicts per cell

@pytest.mark.parametrize("height, width", [(37, 53), (48, 64), (5, 9)])
@pytest.mark.parametrize("bottom, right", [(0, 0), (0, 16), (48, 48), (11, 30)])
@pytest.mark.parametrize("fold", [1, 2])
def test_verdicts_ignore_padding_and_company(height, width, bottom, right, fold):
    discriminator = lived_in(Discriminator(8, fold=fold, cells=True)).eval()
    x, c = torch.rand(1, 1, height, width), torch.tensor([1])
    wide, mask = padded(x, bottom, right)
    with torch.no_grad():
        alone = discriminator.verdicts(x, c, whole=True)
        both = discriminator.verdicts(torch.cat([wide, torch.rand_like(wide)]), torch.tensor([1, 0]),
                                      torch.cat([mask, torch.ones_like(mask)]), whole=True)
        pooled = discriminator(x, c)
    assert len(alone) == 3 and torch.equal(alone[2][0].flatten(), pooled)
    for size, pair, company in zip((8 * fold, 16 * fold, 10**6), alone, both):
        h, w = -(-height // size), -(-width // size)
        for a, b in zip(pair, company):
            assert a.dtype == torch.float32 and a.shape[1] == 1
            torch.testing.assert_close(b[:1, :, :h, :w], a[:, :, :h, :w], atol=1e-4, rtol=0)
            for t in (a, b[:1]): assert not t[:, :, h:].any() and not t[:, :, :, w:].any()
    first = hinge_generator_cells([(logits[:1], weights[:1]) for logits, weights in both])
    torch.testing.assert_close(hinge_generator_cells(alone), first, atol=1e-4, rtol=0)


def test_verdicts_leave_the_rest_of_the_network_as_it_is():
    "The same seed gives the same logit per image with and without them."
    results = []
    for cells in (False, True):
        torch.manual_seed(0)
        discriminator = Discriminator(8, cells=cells)
        torch.manual_seed(1)
        results.append(discriminator(torch.rand(2, 1, 32, 48), torch.tensor([0, 1])))
    assert torch.equal(*results)


def test_verdicts_are_by_projection():
    head = CellVerdict(8, 3).eval()
    with torch.no_grad(): head.conv.bias.fill_(0.3)
    h, c = torch.randn(2, 8, 3, 4), torch.tensor([2, 0])
    weight = head.conv.weight[0, :, 0, 0] + head.embedding.weight[c]
    torch.testing.assert_close(head(h, c)[:, 0], torch.einsum("bchw,bc->bhw", h.relu(), weight) + 0.3)
    for layer in (head.conv, head.embedding):
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_a_class_changes_verdicts_and_gain_multiplies_them():
    plain, loud = Discriminator(8, cells=True).eval(), Discriminator(8, cells=True, gain=32).eval()
    loud.load_state_dict(plain.state_dict())
    x = torch.rand(1, 1, 32, 48)
    with torch.no_grad():
        a, b = (plain.verdicts(x, torch.tensor([n])) for n in (0, 1))
        louder = loud.verdicts(x, torch.tensor([0]))
    for (p, w), (q, _), (l, v) in zip(a, b, louder):
        assert (p - q).abs().min() > 0 and torch.equal(w, v)
        torch.testing.assert_close(l, 32 * p)


def test_nothing_beyond_the_border_is_rewarded():
    discriminator = lived_in(Discriminator(8, fold=2, cells=True))
    fake, mask = torch.rand(2, 1, 64, 96, requires_grad=True), torch.ones(2, 1, 64, 96)
    mask[0, :, :, 41:] = 0
    mask[1, :, 33:] = 0
    for near in (None, torch.rand(2, 1, 64, 96)):
        loss = hinge_generator_cells(discriminator.verdicts(fake, torch.tensor([0, 1]), mask, near, whole=True))
        (gradient,) = torch.autograd.grad(loss, fake)
        assert not (gradient * (1 - mask)).any() and gradient.isfinite().all()
        assert (gradient.abs().amax((1, 2, 3)) > 0).all()


def test_weights_are_by_ink_of_image_or_source():
    discriminator = Discriminator(8, cells=True)
    c = torch.tensor([1])
    x, near = torch.zeros(1, 1, 64, 96), torch.zeros(1, 1, 64, 96)
    x[..., 5, 5] = 0.2
    near[..., 40, 90] = 1
    weights = lambda *a: [w for _, w in discriminator.verdicts(*a)]
    assert all((w == torch.tensor(0.05)).all() for w in weights(x, c))  # 0.2 is no ink
    x[..., 5, 5] = 0.9
    eight, sixteen = weights(x, c)
    assert eight.shape == (1, 1, 8, 12) and sixteen.shape == (1, 1, 4, 6)
    wanted = torch.full((8, 12), 0.05)
    wanted[:2, :2] = 1  # the next cells begin within 4 px
    assert torch.equal(eight[0, 0], wanted)
    both = weights(x, c, None, near)
    wanted[5, 10:] = wanted[4, 10:] = 1
    assert torch.equal(both[0][0, 0], wanted) and both[1][0, 0, 2, 5] == 1
    mask = torch.ones_like(x)
    mask[..., 80:] = 0
    masked_weights = weights(x, c, mask, near)
    assert not masked_weights[0][..., 10:].any() and not masked_weights[1][..., 5:].any()
    assert torch.equal(masked_weights[0][..., :9], eight[..., :9])


@pytest.mark.parametrize("size, reach", [(8, 4), (16, 4), (16, 0), (32, 20)])
def test_cell_weights_cell_by_cell(size, reach):
    ink = (torch.rand(2, 1, 96, 128) > 0.999).float()
    weights = cell_weights(ink, None, size, reach)
    for b in range(2):
        for i in range(96 // size):
            for j in range(128 // size):
                rows = slice(max(0, i * size - reach), (i + 1) * size + reach)
                columns = slice(max(0, j * size - reach), (j + 1) * size + reach)
                around = ink[b, 0, rows, columns]
                assert weights[b, 0, i, j] == (1 if around.any() else torch.tensor(0.05))


@pytest.mark.parametrize("reach", [1, 3])
def test_a_generator_writes_near_its_source_only(reach):
    torch.manual_seed(0)
    generator = Generator(4, reach=reach).eval()
    x = torch.zeros(1, 1, 32, 48)
    x[..., 10:12, 20] = 1
    with torch.no_grad(): y = generator(x, torch.randn(1, 120), torch.tensor([1]), torch.ones_like(x))
    assert (y[..., 10 - reach:12 + reach, 20 - reach:21 + reach] > 0).all()
    y[..., 10 - reach:12 + reach, 20 - reach:21 + reach] = 0
    assert not y.any()


def test_cell_losses_are_weighted_means():
    real = [(torch.randn(2, 1, 4, 6), torch.rand(2, 1, 4, 6)), (torch.randn(2, 1, 2, 3), torch.rand(2, 1, 2, 3))]
    fake = [(torch.randn(2, 1, 4, 6), torch.rand(2, 1, 4, 6)), (torch.randn(2, 1, 2, 3), torch.rand(2, 1, 2, 3))]
    mean = lambda v, w: (v * w).sum() / w.sum()
    d = sum(mean(F.relu(1 - r), rw) + mean(F.relu(1 + f), fw) for (r, rw), (f, fw) in zip(real, fake)) / 2
    torch.testing.assert_close(hinge_discriminator_cells(real, fake), d)
    torch.testing.assert_close(hinge_generator_cells(fake), -sum(mean(*f) for f in fake) / 2)
    padding = lambda pairs: [(F.pad(l, (0, 3, 0, 2), value=9), F.pad(w, (0, 3, 0, 2))) for l, w in pairs]
    torch.testing.assert_close(hinge_discriminator_cells(padding(real), padding(fake)), d)
    equal = [(l, torch.ones_like(l)) for l, _ in fake[:1]]
    torch.testing.assert_close(hinge_generator_cells(equal), hinge_generator(fake[0][0].flatten()))
    assert weighted_mean(torch.ones(3), torch.zeros(3)) == 0


def test_verdicts_learn_where():
    "Two dots, the first with a hole in the fake: only there does the verdict fall."
    x = torch.zeros(2, 1, 64, 64)
    x[:, 0, 12:18, 12:18] = x[:, 0, 44:50, 44:50] = 1
    x[1, 0, 12:18, 14:16] = 0
    discriminator = Discriminator(8, attention=False, cells=True, gain=8)
    c = torch.zeros(1, dtype=torch.int64)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3, betas=(0.5, 0.999))
    for _ in range(60):
        loss = hinge_discriminator_cells(discriminator.verdicts(x[:1], c), discriminator.verdicts(x[1:], c))
        loss.backward(), optimizer.step(), optimizer.zero_grad()
    with torch.no_grad(): real, fake = (discriminator.eval().verdicts(image, c)[0][0] for image in (x[:1], x[1:]))
    difference = (real - fake)[0, 0]
    assert difference[:4, :4].max() > 0.5 and difference[:4, :4].max() > 5 * difference[5:, 5:].abs().max()


# ---- both

@pytest.mark.parametrize("fold", [1, 2, 3, 4])
def test_folding_loses_nothing(fold):
    x = torch.rand(2, 1, 4 * fold, 6 * fold)
    assert folded(x, fold).shape == (2, fold**2, 4, 6) and torch.equal(unfolded(folded(x, fold), fold), x)
    mask = torch.zeros_like(x)
    mask[:, :, :fold + 1, :2 * fold] = 1  # a row of pixels into the second row of cells
    cells = mask_pyramid(mask, 2, fold)
    assert cells[0].shape == (2, 1, 4, 6) and cells[0][0].sum() == 4 and cells[1][0].sum() == 1


# sums over the parameters and outputs of these networks before they could be folded and judge cells
BEFORE = {
    (): (145, -20.916287, 61, 3561.652357, 1423.557518, 654.369630, [0.059728, 0.294014]),
    ("skip",): (159, 30.485630, 61, 3559.673691, 2185.241634, 1462.686517, [0.227484, 0.406572]),
    ("no attention",): (135, -28.616679, 51, 3496.042437, 1739.431434, 926.925667, [0.132006, 0.011888]),
}


@pytest.mark.parametrize("options", BEFORE, ids=str)
def test_a_seed_gives_the_networks_that_it_gave_before(options):
    attention, skip = "no attention" not in options, "skip" in options
    generator, discriminator = Generator(8, attention=attention, skip=skip), Discriminator(8, attention=attention)
    x, z, c = torch.rand(2, 1, 37, 53), torch.randn(2, 120), torch.tensor([0, 1])
    mask = torch.ones_like(x)
    mask[1, :, :, 40:] = 0
    total = lambda tensors: sum(t.double().sum().item() for t in tensors)
    parameters = [len(generator.state_dict()), total(generator.parameters()),
                  len(discriminator.state_dict()), total(p.abs() for p in discriminator.parameters())]
    assert parameters == pytest.approx(BEFORE[options][:4], abs=1e-2)
    if attention:
        with torch.no_grad(): generator.attention.gamma.fill_(1), discriminator.attention.gamma.fill_(1)
    with torch.no_grad():
        y = generator(x, z, c, mask)
        logits = discriminator(y, c, mask)
    assert [total([y]), total([y.double().square()])] == pytest.approx(BEFORE[options][4:6], rel=1e-4)
    assert logits.tolist() == pytest.approx(BEFORE[options][6], abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"skip": True}, {"fold": 2}, {"fold": 3, "skip": True, "attention": False}])
def test_files_carry_the_options(options, tmp_path):
    generator = Generator(8, **options).eval()
    save_generator(generator, tmp_path / "g.safetensors")
    again = load_generator(tmp_path / "g.safetensors")
    assert generator_config(again) == generator_config(generator) and again.fold == options.get("fold", 1)
    x, z, c = torch.rand(1, 1, 37, 53), torch.randn(1, 120), torch.tensor([1])
    with torch.no_grad(): assert torch.equal(again(x, z, c), generator(x, z, c))


def test_files_without_a_fold_are_not_folded(tmp_path):
    "As they were written before there was one."
    from formula_gan.core import save_weights
    old = {name: value for name, value in generator_config(Generator(8)).items() if name not in ("fold", "reach")}
    save_weights(tmp_path / "old.safetensors", "generator", Generator(8), config=old, facts={})
    again = load_generator(tmp_path / "old.safetensors")
    assert (again.fold, again.reach) == (1, 0) and load_generator().fold == 2


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("limit", [0, 2**24])
@pytest.mark.parametrize("fold", [1, 2])
def test_gradients_are_finite(autocast, limit, fold, monkeypatch):
    monkeypatch.setattr(SelfAttention, "plain_limit", limit)
    generator = lived_in(Generator(8, skip=fold == 2, fold=fold))
    discriminator = lived_in(Discriminator(8, fold=fold, cells=True))
    x, z, c = torch.rand(2, 1, 32, 48), torch.randn(2, 120), torch.tensor([0, 1])
    mask = torch.ones_like(x)
    mask[1, :, :, 30:] = 0
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        fake = generator(x, z, c, mask)
        logits = discriminator(fake, c, mask)
        loss = hinge_generator(logits) + hinge_discriminator(discriminator(x, c, mask), logits)
        verdicts = discriminator.verdicts(fake, c, mask, near=x)
        loss = loss + hinge_generator_cells(verdicts)
        loss = loss + hinge_discriminator_cells(discriminator.verdicts(x, c, mask), verdicts)
    assert fake.dtype == logits.dtype == loss.dtype == torch.float32
    loss.backward()
    for p in [*generator.parameters(), *discriminator.parameters()]:
        assert p.grad is not None and p.grad.isfinite().all()
    assert all(b.isfinite().all() for b in generator.buffers())


def test_bfloat16_points_the_same_way():
    generator, discriminator = lived_in(Generator(8)), lived_in(Discriminator(8))
    x, z, c = torch.rand(2, 1, 48, 64), torch.randn(2, 120), torch.tensor([0, 1])
    grads = []
    for autocast in (False, True):
        g, d = copy.deepcopy(generator), copy.deepcopy(discriminator)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast): hinge_generator(d(g(x, z, c), c)).backward()
        grads.append(torch.cat([p.grad.flatten() for p in g.parameters()]))
    assert F.cosine_similarity(*grads, dim=0) > 0.95


def test_an_image_that_is_all_padding_is_harmless():
    x, mask, c = torch.rand(2, 1, 16, 16), torch.ones(2, 1, 16, 16), torch.tensor([0, 1])
    mask[1] = 0
    assert Generator(8)(x, torch.randn(2, 120), c, mask).isfinite().all()
    assert Discriminator(8)(x, c, mask).isfinite().all()
    assert hinge_generator_cells(Discriminator(8, cells=True).verdicts(x, c, mask)).isfinite()


def test_without_attention():
    generator, discriminator = Generator(8, attention=False), Discriminator(8, attention=False)
    assert not any("attention" in k for k in [*generator.state_dict(), *discriminator.state_dict()])
    x, c = torch.rand(1, 1, 16, 32), torch.tensor([1])
    assert discriminator(generator(x, torch.randn(1, 120), c), c).shape == (1,)


def test_state_dict_and_copies_round_trip():
    generator = lived_in(Generator(8))
    x, z, c = torch.rand(1, 1, 32, 32), torch.randn(1, 120), torch.tensor([1])
    for _ in range(2): generator(x, z, c)
    fresh = Generator(8)
    fresh.load_state_dict(generator.state_dict())
    for other in (fresh, copy.deepcopy(generator)):
        assert torch.equal(other.eval()(x, z, c), generator.eval()(x, z, c))
    with pytest.raises(RuntimeError): Generator(8, attention=False).load_state_dict(generator.state_dict())
    addresses = [v.data_ptr() for v in generator.state_dict().values() if v.numel()]
    assert len(set(addresses)) == len(addresses)  # safetensors refuses shared memory


def test_same_seed_same_network():
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(Generator(8).state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_parameter_counts_beside_the_released_code():
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert count(Generator()) == 13_153_219 == 13_134_658 + 18_561
    assert count(Discriminator()) == 4_878_338 == 4_879_298 - 960


def test_losses_are_equations_1_and_2():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 2.0])
    zero = torch.zeros(3)
    expected = -torch.minimum(zero, -1 + real).mean() - torch.minimum(zero, -1 - fake).mean()
    assert hinge_discriminator(real, fake).item() == pytest.approx(expected.item())
    assert hinge_generator(fake).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("call, word", [
    (lambda: Generator(6), "multiple of 4"),
    (lambda: Generator(8, z_dim=3), "z_dim"),
    (lambda: SelfAttention(12), "multiples of 8"),
    (lambda: Generator(8)(torch.rand(1, 3, 16, 16), torch.randn(1, 120), torch.tensor([1])), r"\(B,1,H,W\)"),
    (lambda: Generator(8)(torch.rand(2, 1, 16, 16), torch.randn(2, 100), torch.tensor([1, 1])), r"\(2, 120\)"),
    (lambda: Discriminator(8)(torch.rand(2, 1, 16, 16), torch.tensor([1])), "one per image"),
    (lambda: Discriminator(8)(torch.rand(2, 1, 16, 16), torch.tensor([0, 2])), r"0\.\.1"),
    (lambda: Discriminator(8)(torch.rand(1, 1, 16, 16), torch.tensor([0]), torch.ones(1, 1, 16, 32)), "mask"),
    (lambda: Generator(8, fold=0), "fold"),
    (lambda: Discriminator(8, fold=1.5), "fold"),
    (lambda: Discriminator(8).verdicts(torch.rand(1, 1, 16, 16), torch.tensor([0])), "cells=True"),
    (lambda: Discriminator(8, cells=True).verdicts(torch.rand(1, 1, 16, 16), torch.tensor([0]),
                                                   near=torch.rand(1, 1, 16, 8)), "near"),
])
def test_errors_name_the_thing(call, word):
    with pytest.raises(FormulaGanError, match=word) as caught: call()
    assert "\n" not in str(caught.value)


def test_generator_survives_the_disk(tmp_path):
    torch.manual_seed(0)
    generator = Generator(8, z_dim=15, attention=False).eval()
    x, z, c = torch.rand(2, 1, 20, 40), torch.randn(2, 15), torch.tensor([0, 1])
    save_generator(generator, tmp_path / "g.safetensors", row="7")
    again = load_generator(tmp_path / "g.safetensors")
    assert torch.equal(generator(x, z, c), again(x, z, c)) and again.facts == {"row": "7"}
    save_generator(generator, tmp_path / "small.safetensors", torch.bfloat16)
    assert (load_generator(tmp_path / "small.safetensors")(x, z, c) - again(x, z, c)).abs().max() < 0.05
    (tmp_path / "g.safetensors").write_bytes((tmp_path / "g.safetensors").read_bytes()[:999])
    with pytest.raises(FormulaGanError, match="damaged"): load_generator(tmp_path / "g.safetensors")
    with pytest.raises(FormulaGanError, match="no generator"): load_generator(tmp_path / "none.safetensors")
