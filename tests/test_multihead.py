"""Multi-head diffusion: one pass gives every head; distillation recovers a teacher that heads can represent."""

from dataclasses import asdict, replace

import pytest
import torch
from helpers import Counting, tiny_network
from model_card import card
from torch import Tensor

from rdc.classify import DiffusionClassifier
from rdc.data import Images
from rdc.denoise import EDM, Denoiser, EDMConfig, MultiHead, UNetConfig
from rdc.denoise.checkpoints import ASSETS, load_denoiser, read_checkpoint, save_denoiser
from rdc.denoise.multihead import build_multihead
from rdc.rng import generator, randn
from rdc.schedule import levels
from rdc.train import TrainConfig
from rdc.train.heads import OBJECTIVES, DistilConfig, begin_as, denoise_loss, distil, distil_loss
from rdc.train.recipes import MULTIHEAD
from rdc.train.shrink import compared, pair_loss

UNET = UNetConfig(8, 1, 0, 8, (1,), 1, (), heads=4)
CONFIG = EDMConfig(UNET, 0.6, "digits")


def heads(seed: int = 0) -> MultiHead:
    """A small multi-head network whose last layer is not nearly zero."""
    net = build_multihead(CONFIG, seed)
    last = net.model.dec["8x8_aux_conv"]
    last.weight.data = torch.randn(last.weight.shape, generator=generator("head", seed)) / last.weight[0].numel() ** 0.5
    return net.eval().requires_grad_(False)


def images(n: int = 24, seed: int = 0) -> Images:
    """Random images of three classes, each with its own mean."""
    y = torch.arange(n) % 3
    x = (0.2 + 0.3 * y[:, None, None, None] + 0.1 * torch.rand(n, 1, 8, 8, generator=generator("images", seed))).float()
    return Images(x, y, ["a", "b", "c"])


class Shift(EDM):
    """Wiener denoiser plus a shift for each class; the network is not used."""

    def __init__(self, unet: UNetConfig) -> None:
        super().__init__(torch.nn.Identity(), EDMConfig(unet, 0.6, "digits"))

    def forward(self, z: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
        return z * 0.36 / (0.36 + sigma.reshape(-1, 1, 1, 1) ** 2) + 0.2 * label[:, None, None, None].clamp(min=0)


def test_the_heads_are_one_pass_and_a_label_picks_one():
    net, z, sigma = heads(), randn((5, 1, 8, 8), 1), torch.tensor([0.1, 0.5, 1.0, 2.0, 8.0])
    every = net.all_heads(z, sigma)
    assert isinstance(net, Denoiser) and net.one_pass and net.num_classes == 3 and net.shape == (1, 8, 8)
    assert every.shape == (5, 4, 1, 8, 8) and torch.equal(net.all_classes(z, sigma), every[:, :3])
    assert torch.equal(net(z, sigma), every[:, 3])
    label = torch.tensor([0, 2, -1, 1, -1])
    assert torch.equal(net(z, sigma, label), every[torch.arange(5), [0, 2, 3, 1, 3]])


def test_small_noise_is_left_alone_and_large_noise_forgotten():
    net, z = heads(), randn((2, 1, 8, 8), 2)
    assert torch.allclose(net.all_heads(z, 1e-5), z[:, None].expand(-1, 4, -1, -1, -1), atol=1e-4)
    far = net.all_heads(1e6 * z, 1e6)
    assert float(far.abs().max()) < 100


def test_the_classifier_costs_one_pass_a_level():
    counted = Counting(heads())
    passes = []
    counted.all_classes = lambda z, sigma: (passes.append(len(z)), counted.inner.all_classes(z, sigma))[1]
    model = DiffusionClassifier(counted, levels("elbo", 6))
    assert model(images(4).x).shape == (4, 3)
    assert sum(passes) == 4 * 6 and model.evaluations == 6


def test_the_classifier_is_that_of_the_single_heads():
    class Slow(torch.nn.Module):
        one_pass, num_classes, shape = False, 3, (1, 8, 8)

        def __init__(self, net: MultiHead) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
            return self.net(z, sigma, label)

        def all_classes(self, z: Tensor, sigma: Tensor) -> Tensor:
            return self.net.all_classes(z, sigma)

    x, chosen = images(3).x.requires_grad_(), levels("elbo", 5)
    fast, slow = DiffusionClassifier(heads(), chosen), DiffusionClassifier(Slow(heads()), chosen)
    a, b = fast(x), slow(x)
    assert torch.allclose(a, b, rtol=1e-4)
    ga, gb = (torch.autograd.grad((f * torch.tensor([1.0, -1, 0])).sum(), x)[0] for f in (a, b))
    assert torch.allclose(ga, gb, rtol=1e-3, atol=1e-4 * float(gb.abs().max()))


def test_a_student_equal_to_its_teacher_has_no_loss():
    net, z, sigma = heads(), randn((6, 1, 8, 8), 3), torch.linspace(0.1, 3, 6).reshape(-1, 1, 1, 1)
    args = (z, torch.arange(6) % 3, sigma, randn((6, 1, 8, 8), 4), 7)
    assert float(distil_loss(net, *args, teacher=net, subset=3, seed=0, gamma=0.05).abs().max()) < 1e-9
    other = distil_loss(heads(1), *args, teacher=net, subset=4, seed=0, gamma=0.05)
    assert float(other.min()) > 1e-3


def test_the_plain_loss_of_all_heads_is_algorithm_2():
    """With all heads and gamma = 0 the loss is lambda(sigma) mean_k |D_phi - D_theta|^2 / D."""
    net, teacher, z = heads(1), heads(0), randn((4, 1, 8, 8), 5)
    sigma, eps = torch.tensor([0.2, 0.5, 1.0, 3.0]).reshape(-1, 1, 1, 1), randn((4, 1, 8, 8), 6)
    found = distil_loss(net, z, torch.zeros(4, dtype=torch.long), sigma, eps, 0, teacher=teacher, subset=4, seed=0, gamma=0.0)
    gap = (net.all_heads(z + sigma * eps, sigma.flatten()) - teacher.all_heads(z + sigma * eps, sigma.flatten())).square()
    weight = ((sigma**2 + 0.6**2) / (sigma * 0.6) ** 2).flatten()
    assert torch.allclose(found, weight * gap.flatten(1).mean(1), rtol=1e-4)


def test_a_subset_of_heads_is_unbiased():
    net, teacher = heads(1), heads(0)
    z, eps, sigma = randn((1, 1, 8, 8), 5), randn((1, 1, 8, 8), 6), torch.full((1, 1, 1, 1), 0.7)
    many = [t.expand(4000, -1, -1, -1) for t in (z, sigma, eps)]
    label = torch.zeros(4000, dtype=torch.long)
    some = distil_loss(net, many[0], label, many[1], many[2], 0, teacher=teacher, subset=1, seed=0, gamma=0.0)
    whole = distil_loss(net, z, label[:1], sigma, eps, 0, teacher=teacher, subset=4, seed=0, gamma=0.0)
    assert abs(float(some.mean() - whole)) < 4 * float(some.std()) / 4000**0.5


def test_denoising_trains_the_head_of_the_class_only():
    net = build_multihead(CONFIG)
    z, sigma, eps = randn((3, 1, 8, 8), 1), torch.full((3, 1, 1, 1), 0.5), randn((3, 1, 8, 8), 2)
    denoise_loss(net, z, torch.tensor([1, 1, -1]), sigma, eps, 0).sum().backward()
    slope = net.model.dec["8x8_aux_conv"].weight.grad.flatten(1).abs().sum(dim=1)
    assert slope[0] == 0 and slope[2] == 0 and slope[1] > 0 and slope[3] > 0


def test_a_branch_adds_to_the_unconditional_answer():
    config = EDMConfig(tiny_network().config.unet, 0.6, "digits", branch=replace(UNET, patch=2, heads=3))
    net, z = build_multihead(config, 3).eval().requires_grad_(False), randn((2, 1, 8, 8), 1)
    trunk = EDM(net.model.trunk, config)
    heads = net.all_heads(z, 0.7)
    assert net.num_classes == 3 and heads.shape == (2, 4, 1, 8, 8)
    assert torch.equal(net(z, 0.7), trunk(z, 0.7)) and torch.allclose(heads[:, 3], trunk(z, 0.7), atol=1e-6)
    assert torch.allclose(heads[:, :3], heads[:, 3:].expand(-1, 3, -1, -1, -1), atol=1e-3), "corrections start near zero"


def test_the_branch_reads_what_the_trunk_has_seen():
    """Coarsest activations, the input of the last layer and the answer, folded to the grid of the branch; nothing finer fits."""
    trunk, branch = UNetConfig(8, 1, 0, 8, (1, 2), 1, ()), UNetConfig(8, 1, 0, 8, (1,), 1, (), patch=2, heads=3)
    net = build_multihead(EDMConfig(trunk, 0.6, "digits", branch=branch), 3).eval().requires_grad_(False)
    assert net.model.branch.enc["4x4_conv"].weight.shape[1] == 4 + 16 + 4 * 8 + 4
    x, noise = randn((2, 1, 8, 8), 1), torch.tensor([0.1, -0.2])
    coarse, fine = net.model.trunk.features(x, noise, None)
    assert coarse.shape == (2, 16, 4, 4) and fine.shape == (2, 8, 8, 8)
    assert torch.equal(net.model.trunk.last(fine), net.model.trunk(x, noise))
    with pytest.raises(ValueError, match="a branch of 8x8 cannot read a trunk of"):
        build_multihead(EDMConfig(trunk, 0.6, "digits", branch=replace(branch, patch=1)))


def test_corrections_are_added_in_float32():
    config = EDMConfig(tiny_network().config.unet, 0.6, "digits", branch=replace(UNET, patch=2, heads=3))
    net = build_multihead(config, 3).to(torch.bfloat16)
    assert net.model(randn((2, 1, 8, 8), 1).bfloat16(), torch.zeros(2)).dtype == torch.float32


def test_the_trunk_of_a_branch_is_the_teacher_and_stays(tmp_path):
    teacher = tiny_network(0)
    config = EDMConfig(teacher.config.unet, 0.6, "digits", branch=replace(UNET, patch=2, heads=3))
    recipe = TrainConfig(config, steps=5, batch=8, lr=3e-3, warmup=1)
    path = distil(DistilConfig(recipe, subset=3), tmp_path / "a.safetensors", images=images(), quiet=True, teacher=teacher)
    net = load_denoiser(path)
    for name, parameter in teacher.model.state_dict().items():
        assert torch.equal(net.model.trunk.state_dict()[name], parameter)
    start = build_multihead(config).model.branch.state_dict()
    assert not all(torch.equal(v, start[k]) for k, v in net.model.branch.state_dict().items())
    with pytest.raises(ValueError, match="a branch needs a teacher"):
        distil(DistilConfig(recipe, objective="denoise"), tmp_path / "b.safetensors", images=images())


@pytest.mark.parametrize("what", [one for one in OBJECTIVES if one != "pairs"])  # see below
def test_training_lowers_its_loss_and_resumes(what, tmp_path):
    recipe = TrainConfig(CONFIG, steps=60, batch=12, lr=3e-3, warmup=3, label_dropout=0.0)
    config = DistilConfig(recipe, objective=what, subset=2, levels=3)
    data = images()
    path = distil(config, tmp_path / "heads.safetensors", images=data, quiet=True, teacher=tiny_network(0))
    again = distil(config, tmp_path / "again.safetensors", images=data, quiet=True, teacher=tiny_network(0))
    a, b = load_denoiser(path), load_denoiser(again)
    assert isinstance(a, MultiHead) and all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    z = 2 * data.x[:4] - 1
    assert not torch.allclose(a.all_heads(z, 1.0), build_multihead(CONFIG).all_heads(z, 1.0), atol=1e-2)


def test_distillation_recovers_a_teacher_of_the_same_form(tmp_path):
    """A teacher whose classes differ by a shift: the loss falls far below what an untrained student has."""
    teacher = Shift(UNetConfig(8, 1, 3, 8, (1,), 1, ()))

    recipe = TrainConfig(CONFIG, steps=250, batch=16, lr=5e-3, warmup=5)
    path = distil(DistilConfig(recipe, subset=4), tmp_path / "a.safetensors", images=images(), quiet=True, teacher=teacher)
    z, sigma, eps = 2 * images(24, 1).x - 1, torch.full((24, 1, 1, 1), 1.0), randn((24, 1, 8, 8), 9)
    args = (z, torch.zeros(24, dtype=torch.long), sigma, eps, 0)
    before, after = (
        distil_loss(net, *args, teacher=teacher, subset=4, seed=0, gamma=0.0).mean().item()
        for net in (build_multihead(CONFIG), load_denoiser(path))
    )
    assert after < 0.1 * before


def test_heads_that_start_from_a_denoiser_are_its_answer_without_a_class():
    """In float64; with the class embedding's own constant, which the network without labels has elsewhere."""
    start = tiny_network(1)
    for i, part in enumerate(start.model.parameters()):  # biases are zero at first
        part.data += 0.1 * randn(tuple(part.shape), "part", i)
    config = replace(start.config, unet=replace(start.config.unet, label_dim=0, heads=4))
    net, z = build_multihead(config).double(), randn((3, 1, 8, 8), 1).double()
    begin_as(net, start.double())
    for sigma in (0.1, 0.7, 5.0):
        free = start(z, sigma)
        assert torch.allclose(net.all_heads(z, sigma), free[:, None].expand(-1, 4, -1, -1, -1), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(free, start(z, sigma, torch.zeros(3, dtype=torch.long)), atol=1e-3)


def test_heads_that_start_from_heads_are_theirs_and_a_branch_starts_from_none():
    first, z = heads(1).double(), randn((3, 1, 8, 8), 1).double()
    for i, part in enumerate(first.model.parameters()):
        part.data += 0.1 * randn(tuple(part.shape), "part", i)
    net = build_multihead(CONFIG).double()
    begin_as(net, first)
    assert torch.equal(net.all_heads(z, 0.7), first.all_heads(z, 0.7))
    assert not any(p.data_ptr() == q.data_ptr() for p, q in zip(net.parameters(), first.parameters(), strict=True))
    branched = build_multihead(EDMConfig(tiny_network().config.unet, 0.6, "digits", branch=replace(UNET, patch=2, heads=3)))
    for one, other in ((net, branched), (branched, net)):
        with pytest.raises(ValueError, match="wide heads cannot start from another denoiser: it needs the same unet"):
            begin_as(one, other)


def test_the_loss_of_compared_heads():
    """Head by head, with the formula written out: distances, and the differences of all pairs in the units of the logits."""
    net, teacher, z = heads(1), heads(0), randn((4, 1, 8, 8), 5).double()
    net, teacher, eps = net.double(), teacher.double(), randn((4, 1, 8, 8), 6).double()
    sigma, label = torch.tensor([0.2, 0.5, 1.0, 3.0]).double().reshape(-1, 1, 1, 1), torch.tensor([0, 2, 1, -1])
    found = pair_loss(net, z, label, sigma, eps, 3, teacher, 0, 7.0, 3, True)
    for i, asked in enumerate(compared(label, 3, 3, 0, 3).tolist()):
        assert asked[0] == label[i] and len(set(asked)) == 3
        s, noisy = float(sigma[i]), (z + sigma * eps)[i : i + 1]
        c_out, c_skip = s * 0.6 / (s**2 + 0.36) ** 0.5, 0.36 / (s**2 + 0.36)
        gap = [((net(noisy, s, torch.tensor([k])) - teacher(noisy, s, torch.tensor([k]))) / c_out).flatten() for k in asked]
        apart = sum(float((gap[j] - gap[k]).square().mean()) for j, k in ((0, 1), (0, 2), (1, 2))) / 3
        wanted = sum(float(g.square().mean()) for g in gap) / 3 + 7.0 * c_skip * apart
        assert abs(float(found[i]) - wanted) < 1e-9 * wanted


def test_classes_are_compared_equally_often():
    found = compared(torch.tensor([1, -1]).repeat(2000), 4, 3, 0, 0)
    for own, others in ((1, [0, 2, 3]), (-1, [0, 1, 2, 3])):
        asked = found[found[:, 0] == own][:, 1:]
        share = torch.bincount(asked.flatten(), minlength=4) / len(asked)
        assert torch.allclose(share[others], torch.full((len(others),), 2 / len(others)), atol=0.05)
        assert float(share.sum()) == 2 and not bool((asked[:, 0] == asked[:, 1]).any())


def test_heads_start_from_a_checkpoint_fall_in_loss_and_resume(tmp_path):
    teacher, start = tiny_network(0), tmp_path / "start.safetensors"
    save_denoiser(start, teacher)
    network = replace(teacher.config, unet=replace(teacher.config.unet, label_dim=0, heads=4))
    recipe = TrainConfig(network, steps=20, batch=12, lr=2e-3, warmup=2, label_dropout=0.2, flip=True)
    config = DistilConfig(recipe, objective="pairs", subset=3, gamma=10.0, start=str(start))
    given = {"images": images(), "quiet": True, "teacher": teacher}
    whole, piece = tmp_path / "whole.safetensors", tmp_path / "piece.safetensors"
    distil(config, whole, **given)
    distil(config, piece, minutes=1e-6, **given)
    assert read_checkpoint(piece, "denoiser")[1]["stopped"] == 1
    distil(config, piece, **given)
    a, b = load_denoiser(whole), load_denoiser(piece)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    z, sigma, eps = 2 * images(24, 1).x - 1, torch.full((24, 1, 1, 1), 0.7), randn((24, 1, 8, 8), 9)
    first = build_multihead(network)
    begin_as(first, teacher)
    args = (z, torch.arange(24) % 3, sigma, eps, 0, teacher, 0, 10.0, 3, True)
    before, after = (pair_loss(net, *args).mean().item() for net in (first, a))
    assert after < 0.9 * before


def test_the_heads_of_cifar10_start_from_the_shipped_denoiser_and_are_small():
    config = MULTIHEAD["cifar10-small"]
    net = build_multihead(config.train.denoiser)
    begin_as(net, load_denoiser(config.start))
    assert 2 * sum(p.numel() for p in net.parameters()) < 8e6 and net.num_classes == 10
    for path in ASSETS.glob("cifar10-*-multihead.safetensors"):
        assert path.stat().st_size < 8e6 and load_denoiser(path, data="cifar10-20").config == config.train.denoiser
        assert path.with_suffix(".md").read_text(encoding="utf8") == card(path.stem)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    net = heads()
    save_denoiser(tmp_path / "a.safetensors", net)
    back = load_denoiser(tmp_path / "a.safetensors", data="digits")
    assert isinstance(back, MultiHead) and asdict(back.config) == asdict(CONFIG)
    z = randn((2, 1, 8, 8), 1)
    assert torch.equal(back.all_heads(z, 0.5), net.all_heads(z, 0.5))


def test_the_shipped_network_has_the_teacher_for_its_trunk():
    heads, teacher = load_denoiser("fashion-multihead", data="fashion"), load_denoiser("fashion-mini")
    for name, parameter in teacher.model.state_dict().items():
        assert torch.equal(heads.model.trunk.state_dict()[name], parameter)


def test_mistakes_get_one_line(tmp_path):
    with pytest.raises(ValueError, match="K . 1 >= 3"):
        build_multihead(EDMConfig(replace(UNET, heads=1), 0.6, "digits"))
    recipe = TrainConfig(CONFIG, steps=1)
    with pytest.raises(ValueError, match="unknown objective"):
        distil(DistilConfig(recipe, objective="gan"), tmp_path / "a.safetensors", images=images())
    with pytest.raises(ValueError, match="subset must be"):
        distil(DistilConfig(recipe, subset=9), tmp_path / "a.safetensors", images=images(), teacher=tiny_network(0))
    pairs, given = DistilConfig(recipe, objective="pairs"), {"images": images(), "teacher": tiny_network(0)}
    with pytest.raises(ValueError, match="pairs need a subset of 2 to 3 classes, got 1"):
        distil(replace(pairs, subset=1), tmp_path / "a.safetensors", **given)
    with pytest.raises(ValueError, match="no checkpoint .*none.safetensors; the shipped ones are"):
        distil(replace(pairs, start=str(tmp_path / "none.safetensors")), tmp_path / "a.safetensors", **given)
    with pytest.raises(ValueError, match="wide heads cannot start from digits: it needs the same unet"):
        distil(replace(pairs, start="digits"), tmp_path / "a.safetensors", **given)
    with pytest.raises(ValueError, match="the teacher has 5 classes"):
        distil(DistilConfig(recipe), tmp_path / "a.safetensors", images=images(), teacher=tiny_network(0, num_classes=5))
