"""Checkpoints of EDM: what a made-up file holds arrives to the bit, and hostile ones run nothing."""

import copy
import hashlib
import os
import pickle
import subprocess
import sys
import types
import webbrowser
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from rdc.denoise.checkpoints import CheckpointError, load_denoiser, read_checkpoint
from rdc.denoise.edm import EDMConfig
from rdc.denoise.edm_pickle import read_edm_pickle
from rdc.denoise.published import PublishedConfig, build_published, convert, data_for
from rdc.denoise.published import load_denoiser as load_any
from rdc.denoise.unet import UNetConfig
from rdc.models import build
from rdc.models.weights import checkpoints_of
from rdc.rng import randn

CONFIG = EDMConfig(UNetConfig(8, 3, 4, 16, (1, 2), 1, (4,), augment_dim=9), data="cifar10")
KWARGS = {
    "img_resolution": 8, "img_channels": 3, "label_dim": 4, "use_fp16": True, "model_type": "SongUNet", "model_channels": 16,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "augment_dim": 9, "embedding_type": "positional",
    "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1], "dropout": 0.13, "label_dropout": 0,
}  # fmt: skip
NCSN = {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1], "channel_mult_noise": 2}
ADM = {"model_type": "DhariwalUNet", "model_channels": 64, "augment_dim": 0}
#: Network, parameterisation, the class of EDM that computes it, and its arguments where they differ.
NETWORKS = {
    "ddpm++": ("edm", "EDMPrecond", {}),
    "ddpm++ vp": ("vp", "VPPrecond", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}),
    "ncsn++": ("edm", "EDMPrecond", NCSN),
    "ncsn++ ve": ("ve", "VEPrecond", {**NCSN, "sigma_min": 0.02, "sigma_max": 100}),
    "adm": ("edm", "EDMPrecond", ADM),
    "adm ddpm": ("ddpm-cosine", "iDDPMPrecond", {**ADM, "C_1": 0.001, "C_2": 0.008, "M": 1000}),
}


class Persistent:
    """Pickles like a module of EDM: a call with the state of the module, and with a source that would be executed."""

    def __init__(self, module, source, name="X", **more):
        self.module, self.source, self.name, self.more = module, source, name, more

    def __reduce__(self):
        state = {"training": False, "_parameters": dict(self.module._parameters), "_modules": OrderedDict()}
        state["_buffers"] = dict(self.module._buffers)
        for name, child in self.module._modules.items():
            if isinstance(child, nn.ModuleDict):
                holder = nn.ModuleDict()
                holder._modules = {key: Persistent(value, self.source) for key, value in child.items()}
                state["_modules"][name] = holder  # a plain module of torch, as in the published files
            else:
                of_network = self.more["_init_kwargs"]["model_type"] if name == "model" else "X"
                state["_modules"][name] = None if child is None else Persistent(child, self.source, of_network)
        if type(self.module).__name__.endswith("Block"):
            state["_buffers"]["resample_filter"] = torch.ones(1, 1, 2, 2)
            state["skip_scale"] = np.sqrt(0.5)
        state |= self.more
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.name, "state": state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@pytest.fixture
def edm(monkeypatch):
    """The names that the published files ask for."""

    def _reconstruct_persistent_obj(meta):
        exec(meta["module_src"])

    class EasyDict(dict):
        pass

    for name, thing in (("torch_utils.persistence", _reconstruct_persistent_obj), ("dnnlib.util", EasyDict)):
        module = types.ModuleType(name)
        thing.__module__, thing.__qualname__ = name, thing.__name__
        setattr(module, thing.__name__, thing)
        monkeypatch.setitem(sys.modules, name.split(".")[0], types.ModuleType(name.split(".")[0]))
        monkeypatch.setitem(sys.modules, name, module)
    return EasyDict


@pytest.fixture
def network():
    return filled("ddpm++")


def filled(case):
    """A network with weights of which none is nearly zero."""
    kind, _, changes = NETWORKS[case]
    given = {**KWARGS, **changes}
    unet = replace(CONFIG.unet, model_channels=given["model_channels"], augment_dim=given["augment_dim"])
    denoiser = build_published(PublishedConfig(replace(CONFIG, unet=unet, unlabelled=False), case.split()[0], kind))
    for name, p in denoiser.state_dict().items():
        p.copy_(randn(tuple(p.shape), "edm", name) / 10)
    return denoiser.eval().requires_grad_(False)


def inner(denoiser):
    """The published network."""
    return getattr(denoiser.model, "network", denoiser.model)


def written(path, network, edm, flag="", precond="EDMPrecond", **changes):
    """A file as EDM writes them, and what would be executed in it."""
    holder = nn.Module()
    holder.model = inner(network)
    if precond == "iDDPMPrecond":
        holder.model = copy.deepcopy(holder.model)
        holder.model.out_conv = nn.Conv2d(64, 6, 3)
        for both, one in zip(holder.model.out_conv.parameters(), inner(network).out_conv.parameters(), strict=True):
            both.data[:3] = one
        holder.register_buffer("u", torch.zeros(1001))
    source = f"__import__('pathlib').Path({str(flag)!r}).touch()"
    ema = Persistent(holder, source, precond, _init_args=(), _init_kwargs=edm({**KWARGS, **changes}))
    path.write_bytes(pickle.dumps({"ema": ema, "dataset_kwargs": edm(use_labels=True)}, protocol=4))
    return path


def test_a_file_arrives_to_the_bit_and_its_source_is_not_run(tmp_path, network, edm):
    path, flag = written(tmp_path / "x.pkl", network, edm, tmp_path / "flag"), tmp_path / "flag"
    pickle.loads(path.read_bytes())  # our own file: this is what an unpickler does
    assert flag.exists()
    flag.unlink()
    out = convert(path, tmp_path / "x.safetensors", "cifar10")
    tensors, meta = read_checkpoint(out, "denoiser")
    assert not flag.exists() and tensors.keys() == network.model.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in network.model.state_dict().items())
    z, label = randn((2, 3, 8, 8), "z").double(), torch.tensor([0, 3])
    a, b = load_denoiser(out, dtype=torch.float64, data="cifar10"), network.double()
    assert torch.equal(a(z, 0.7, label), b(z, 0.7, label))
    assert meta["source"] == "x.pkl" and len(meta["source_sha256"]) == 64 and not a.unlabelled


def test_a_file_is_the_denoiser_of_a_model_and_its_source_is_not_run(tmp_path, network, edm):
    path, flag = written(tmp_path / "x.pkl", network, edm, tmp_path / "flag"), tmp_path / "flag"
    options = {"levels": 2, "sigma_min": 0.1, "sigma_max": 2.0}
    x = randn((2, 3, 8, 8), "z").sigmoid()
    wanted = build("dc", "cifar10", denoiser=str(convert(path, tmp_path / "x.safetensors", "cifar10")), **options)(x)
    assert torch.equal(build("dc", "cifar10", denoiser=str(path), **options)(x), wanted)
    assert torch.equal(build(str(path), "cifar10", **options)(x), wanted) and not flag.exists()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert checkpoints_of(str(path), "cifar10", {}) == {"x": digest} and not flag.exists()
    assert checkpoints_of("dc", "cifar10", {"denoiser": "none.pkl"}) == {"none": "missing"}


@pytest.mark.parametrize("case", NETWORKS)
def test_every_network_arrives_to_the_bit(tmp_path, edm, case):
    kind, precond, changes = NETWORKS[case]
    network = filled(case)
    path, flag = written(tmp_path / "x.pkl", network, edm, tmp_path / "flag", precond, **changes), tmp_path / "flag"
    out = convert(path, tmp_path / "x.safetensors", data="mine")
    tensors, meta = read_checkpoint(out, "denoiser" if case == "ddpm++" else "published denoiser")
    wanted = inner(network).state_dict()
    assert tensors.keys() == wanted.keys() and all(torch.equal(tensors[name], value) for name, value in wanted.items())
    assert case == "ddpm++" or (meta["config"]["network"], meta["config"]["parameterisation"]) == (case.split()[0], kind)
    z, label = randn((2, 3, 8, 8), "z").double(), torch.tensor([0, 3])
    due = network.double()(z, 0.7, label)
    for found in (load_any(path, dtype=torch.float64, data="mine"), load_any(out, dtype=torch.float64, data="mine")):
        assert torch.equal(found(z, 0.7, label), due) and found.config.data == "mine"
        assert not found.unlabelled
        with pytest.raises(ValueError, match="trained with labels only"):
            found(z, 0.7)
    assert not flag.exists()


@pytest.mark.parametrize(("dropout", "labels"), [(0.1, 4), (0, 0)])
def test_an_answer_without_a_label_that_was_trained(tmp_path, edm, dropout, labels):
    denoiser = build_published(PublishedConfig(replace(CONFIG, unet=replace(CONFIG.unet, label_dim=labels))))
    path = written(tmp_path / "x.pkl", denoiser, edm, label_dropout=dropout, label_dim=labels)
    found = load_any(path)
    assert found.unlabelled and found(randn((1, 3, 8, 8), "z"), 0.7).shape == (1, 3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embedding_type": "fourier"}, "another network than ddpm.*embedding_type = 'fourier'"),
        ({"resample_filter": [1, 3, 3, 1]}, r"another network than ddpm.*resample_filter = \[1, 3, 3, 1\]"),
        ({"encoder_type": "residual"}, "another network than ddpm.*encoder_type = 'residual'"),
        ({"model_type": "MyUNet"}, "it is EDMPrecond of MyUNet, none of EDMPrecond, VPPrecond"),
        ({"precond": "MyPrecond"}, "it is MyPrecond of SongUNet, none of EDMPrecond, VPPrecond"),
        ({"precond": "VPPrecond", "beta_d": 12.0}, "beta_d = 12.0 is not what this package computes"),
        ({"decoder_type": "skip"}, "decoder_type = 'skip' is not what"),
        ({"channel_mult_emb": torch.ones(3)}, "none can be built"),
        ({"sigma_data": -1.0}, "sigma_data"),
    ],
)
def test_another_network_is_named(tmp_path, network, edm, changes, says):
    path = written(tmp_path / "x.pkl", network, edm, **changes)
    for read in (load_any, lambda p: convert(p, tmp_path / "x.safetensors")):
        with pytest.raises(CheckpointError, match=says) as error:
            read(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    "changes", [{"model_channels": 20}, {"num_blocks": -1}, {"img_resolution": "8"}, {"attn_resolutions": [8]}]
)
def test_arguments_that_do_not_fit_the_tensors_are_named(tmp_path, network, edm, changes):
    with pytest.raises(CheckpointError) as error:
        convert(written(tmp_path / "x.pkl", network, edm, **changes), tmp_path / "x.safetensors")
    assert "\n" not in str(error.value) and not (tmp_path / "x.safetensors").exists()


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def raw(module, name, argument):
    """A pickle that calls ``module.name(argument)``, by hand: an object of that name need not exist here."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


def numpy_object(path):
    return pickle.dumps(np.array([Call(open, path, "w")], dtype=object))


HOSTILE = {
    "os.system": lambda f: pickle.dumps(Call(os.system, f"touch {f}")),
    "posix.system by hand": lambda f: raw("posix", "system", f"touch {f}"),
    "eval": lambda f: pickle.dumps(Call(eval, f"open({f!r}, 'w')")),
    "exec": lambda f: pickle.dumps(Call(exec, f"open({f!r}, 'w')")),
    "open": lambda f: pickle.dumps(Call(open, f, "w")),
    "subprocess": lambda f: pickle.dumps(Call(subprocess.check_call, ["touch", f])),
    "getattr": lambda f: pickle.dumps(Call(getattr, Call(__import__, "os"), "system")),
    "importlib": lambda f: raw("importlib", "import_module", "antigravity"),
    "webbrowser": lambda f: pickle.dumps(Call(webbrowser.open, f"file://{f}")),
    "codecs": lambda f: raw("_codecs", "encode", f),
    "numpy": numpy_object,
    "a method of an allowed class": lambda f: f"ccollections\nOrderedDict.__init__.__globals__\n(V{f}\ntR.".encode(),
    "torch.load": lambda f: raw("torch", "load", f),
    "torch.nn by another way": lambda f: raw("torch.nn.modules.module", "torch.hub.load_state_dict_from_url", f),
    "a chain": lambda f: pickle.dumps({"ema": [OrderedDict(a=Call(OrderedDict, Call(os.system, f"touch {f}")))]}),
    "storage of hostile bytes": lambda f: pickle.dumps(
        Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.system, f"touch {f}"), protocol=2))
    ),
    "persistent id": lambda f: b"Vsome\nQ.",
    "memory beyond its end": lambda f: pickle.dumps(
        Call(torch._utils._rebuild_tensor_v2, torch.zeros(2).storage(), 0, (9,), (1,), False, OrderedDict())
    ),
    "a module that is called": lambda f: b"ctorch.nn.modules.linear\nLinear\n)\x81)R.",
    "not a pickle": lambda f: b"<html>404</html>",
    "empty": lambda f: b"",
    "a number": lambda f: pickle.dumps(3),
    "deep": lambda f: b"]" * 100_000 + b"a" * 99_999 + b".",
}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_runs_nothing(tmp_path, case):
    path, flag = tmp_path / "x.pkl", tmp_path / "flag"
    path.write_bytes(HOSTILE[case](str(flag)))
    for read in (read_edm_pickle, load_any, lambda p: convert(p, tmp_path / "out.safetensors")):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pkl"]


def test_a_file_that_is_not_for_cifar10_needs_a_name(tmp_path, network, edm):
    path = written(tmp_path / "x.pkl", network, edm)
    says = r"x\.pkl is not for cifar10 \(images of 3 x 8 x 8, 4 classes\); name its data set with --data"
    with pytest.raises(CheckpointError, match=says):
        convert(path, tmp_path / "x.safetensors")
    assert read_checkpoint(convert(path, tmp_path / "x.safetensors", "mine"), "denoiser")[1]["config"]["data"] == "mine"
    for classes, channels, side, data in ((10, 3, 32, True), (0, 3, 32, True), (100, 3, 32, False), (10, 1, 32, False)):
        unet = replace(CONFIG.unet, label_dim=classes, channels=channels, resolution=side)
        if data:
            assert data_for(unet, path) == "cifar10"
        else:
            with pytest.raises(CheckpointError, match="name its data set"):
                data_for(unet, path)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
def test_what_a_storage_asks_for_is_named(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(HOSTILE["storage of hostile bytes"](str(tmp_path / "flag")))
    with pytest.raises(CheckpointError, match=r"is refused, and nothing of it was run: .*unsupported GLOBAL (posix|nt)\.system"):
        convert(path, tmp_path / "x.safetensors", "mine")


def test_what_is_refused_is_named(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(Call(os.system, "true")))
    with pytest.raises(CheckpointError, match=r"is refused, and nothing of it was run: it asks for (posix|nt)\.system"):
        read_edm_pickle(path)


def test_a_file_cannot_tamper_with_the_reading_of_the_next(tmp_path, network, edm):
    """BUILD with a slot state sets attributes, also of a class: of one that no other file meets."""
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(b"ctorch.nn.modules.linear\nLinear\n(N}V__setstate__\nccollections\nOrderedDict\nstb.")
    with pytest.raises(CheckpointError):
        read_edm_pickle(bad)
    assert read_edm_pickle(written(tmp_path / "x.pkl", network, edm))[0].keys() == {
        f"model.{name}" for name in network.model.state_dict()
    }
