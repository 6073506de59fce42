"""The chapters run on a GPU without a change of code: read from the source of their cells (see ``device_reader``)."""

from pathlib import Path

import pytest
from device_reader import code, device_faults

PY = sorted((Path(__file__).parents[1] / "notebooks").glob("*.py"))
START = "x = load('digits', 'test').x.to(device)\nmodel = load_denoiser('digits', device)"


@pytest.mark.parametrize("path", PY, ids=lambda p: p.stem)
def test_no_tensor_of_the_cpu_meets_the_device(path: Path) -> None:
    assert not (found := device_faults(code(path))), "\n".join(found)


MEETS, INDEX, LEAVES, NAMED = "of the CPU meets", "index of the device", "numpy", "by its name"
GRID = "def grid(n: int):\n    return torch.linspace(0, 1, n)\n"


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("z = x + torch.zeros(3)", MEETS),
        ("z = x + torch.zeros(3, device=device)", None),
        ("z = x + torch.zeros(3, device='cpu')", MEETS),
        ("z = x + torch.zeros(3).to(x)", None),
        ("z = x + torch.zeros_like(x)", None),
        ("z = x * torch.tensor(0.3)", None),
        ("z = x * torch.tensor([0.3])", MEETS),
        ("z = x + randn((3,), seed, 'a')", MEETS),
        ("z = x + randn((3,), seed, 'a', like=x)", None),
        ("noise = torch.rand(3, generator=g)\nfor i in range(3):\n    z = i * x - noise", MEETS),
        ("z = torch.cat([x, load('digits', 'train').x])", MEETS),
        ("y = load('digits', 'test').y\nprint(accuracy(model, x, y))", MEETS),
        ("z = load_denoiser('digits')(x)", MEETS),
        ("net = load_denoiser('digits')\nz = net(x)", MEETS),
        ("found = {}\nfound['a'] = x\nfor key, v in found.items():\n    print(key, torch.ones(3) @ v)", MEETS),
        ("z = x[torch.arange(3)]", None),
        ("z = torch.arange(3)[x.argmax(1)]", INDEX),
        ("z = torch.arange(3)[x.argmax(1).cpu()]", None),
        ("def f(z: Tensor):\n    return z + torch.arange(len(z))", MEETS),
        ("def f(z: Tensor):\n    return z + torch.arange(len(z), device=z.device)\nf(x)", None),
        (GRID + "def f(z: Tensor):\n    return z + grid(len(z))", MEETS),
        (GRID + "def f(z: Tensor):\n    return z + grid(len(z)).to(z)\nf(x)", None),
        ("noise = torch.ones(3)\ndef f(z: Tensor):\n    return z + noise\nf(torch.zeros(3))", None),
        ("noise = torch.ones(3)\ndef f(z: Tensor):\n    return z + noise\nf(x)", MEETS),
        ("noise = torch.ones(3)\ndef f(z: Tensor):\n    return z + noise\nattack = partial(pgd, loss=f)", MEETS),
        ("class Model(nn.Module):\n    def forward(self, z: Tensor):\n        return z + torch.arange(len(z))", MEETS),
        ("z = x.numpy()", LEAVES),
        ("z = x.flatten(1).cpu().numpy()", None),
        ("z = np.mean([v.mean() for v in x])", LEAVES),
        ("z = np.mean([float(v.mean()) for v in x])", None),
        ("ax.plot(range(3), x.mean(1))", LEAVES),
        ("ax.plot(range(3), x.mean(1).cpu(), label=f'{x.mean()}')", None),
        ("image_grid(x)", None),
        ("z = x.cuda()", NAMED),
        ("z = x.to('cuda')", NAMED),
        ("z = torch.zeros(3, device='cuda')", NAMED),
    ],
)
def test_a_planted_fault_is_found(cell: str, says: str | None) -> None:
    found = device_faults([START, cell])
    assert len(found) == 1 and says in found[0] if says else not found, found
