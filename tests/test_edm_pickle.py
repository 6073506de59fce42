"""Checkpoints of EDM: what a made-up file holds arrives to the bit, and hostile ones run nothing."""

import os
import pickle
import subprocess
import sys
import types
import webbrowser
from collections import OrderedDict

import pytest
import torch
from torch import nn

from rdc.denoise.checkpoints import CheckpointError, load_denoiser, read_checkpoint
from rdc.denoise.edm import EDMConfig, build
from rdc.denoise.edm_pickle import convert, read_edm_pickle
from rdc.denoise.unet import UNetConfig
from rdc.rng import randn

CONFIG = EDMConfig(UNetConfig(8, 3, 4, 16, (1, 2), 1, (4,), augment_dim=9), data="cifar10")
KWARGS = {
    "img_resolution": 8, "img_channels": 3, "label_dim": 4, "use_fp16": True, "model_type": "SongUNet", "model_channels": 16,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "augment_dim": 9, "embedding_type": "positional",
    "encoder_type": "standard", "decoder_type": "standard", "resample_filter": [1, 1], "dropout": 0.13, "label_dropout": 0,
}  # fmt: skip


class Persistent:
    """Pickles like a module of EDM: a call with the state of the module, and with a source that would be executed."""

    def __init__(self, module, source, **more):
        self.module, self.source, self.more = module, source, more

    def __reduce__(self):
        state = {"training": False, "_parameters": dict(self.module._parameters), "_buffers": {}, "_modules": OrderedDict()}
        for name, child in self.module._modules.items():
            if isinstance(child, nn.ModuleDict):
                holder = nn.ModuleDict()
                holder._modules = {key: Persistent(value, self.source) for key, value in child.items()}
                state["_modules"][name] = holder  # a plain module of torch, as in the published files
            else:
                state["_modules"][name] = None if child is None else Persistent(child, self.source)
        if type(self.module).__name__ == "Block":
            state["_buffers"]["resample_filter"] = torch.ones(1, 1, 2, 2)
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": "X", "state": {**state, **self.more}}
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
    denoiser = build(CONFIG)
    for name, p in denoiser.model.named_parameters():
        p.data = randn(tuple(p.shape), "edm", name) / 10
    return denoiser.eval().requires_grad_(False)


def written(path, network, edm, flag="", **changes):
    """A file as EDM writes them, and what would be executed in it."""
    holder = nn.Module()
    holder.model = network.model
    source = f"__import__('pathlib').Path({str(flag)!r}).touch()"
    ema = Persistent(holder, source, _init_args=(), _init_kwargs=edm({**KWARGS, **changes}))
    path.write_bytes(pickle.dumps({"ema": ema, "dataset_kwargs": edm(use_labels=True)}, protocol=4))
    return path


def test_a_file_arrives_to_the_bit_and_its_source_is_not_run(tmp_path, network, edm):
    path, flag = written(tmp_path / "x.pkl", network, edm, tmp_path / "flag"), tmp_path / "flag"
    pickle.loads(path.read_bytes())  # our own file: this is what an unpickler does
    assert flag.exists()
    flag.unlink()
    out = convert(path, tmp_path / "x.safetensors")
    tensors, meta = read_checkpoint(out, "denoiser")
    assert not flag.exists() and tensors.keys() == network.model.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in network.model.state_dict().items())
    z, label = randn((2, 3, 8, 8), "z").double(), torch.tensor([0, 3])
    a, b = load_denoiser(out, dtype=torch.float64, data="cifar10"), network.double()
    assert torch.equal(a(z, 0.7, label), b(z, 0.7, label))
    assert meta["source"] == "x.pkl" and len(meta["source_sha256"]) == 64 and not a.unlabelled


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "DhariwalUNet"},
        {"embedding_type": "fourier"},
        {"resample_filter": [1, 3, 3, 1]},
        {"encoder_type": "residual"},
    ],
)
def test_another_network_is_named(tmp_path, network, edm, changes):
    path = written(tmp_path / "x.pkl", network, edm, **changes)
    ((name, _),) = changes.items()
    with pytest.raises(CheckpointError, match=f"another network than DDPM.*{name}") as error:
        convert(path, tmp_path / "x.safetensors")
    assert "\n" not in str(error.value) and not (tmp_path / "x.safetensors").exists()


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
    import numpy as np

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
    for read in (read_edm_pickle, lambda p: convert(p, tmp_path / "out.safetensors")):
        with pytest.raises(CheckpointError) as error:
            read(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pkl"]


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
