"""Checkpoints: what is written comes back, and everything else is one line."""

import json
import struct
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_network
from hypothesis import given
from hypothesis import strategies as st

from rdc.denoise import EDM, EDMConfig, UNetConfig
from rdc.denoise.checkpoints import (
    CheckpointError,
    load_denoiser,
    read_checkpoint,
    save_denoiser,
    tensors_sha256,
    write_checkpoint,
)
from rdc.denoise.configuration import from_json
from rdc.denoise.edm import build

TINY = EDMConfig(UNetConfig(4, 1, 2, 4, (1,), 1, ()), sigma_data=0.7, data="digits")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    save_denoiser(path, build(TINY))
    return path


def header_of(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def with_header(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The file with another JSON header."""
    header = header_of(data)
    text = change(header)
    new = text if isinstance(text, bytes) else json.dumps(header if text is None else text).encode()
    return struct.pack("<Q", len(new)) + new + data[8 + int.from_bytes(data[:8], "little") :]


def with_meta(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """The file with another entry ``rdc`` of its metadata."""

    def changed(header: dict[str, Any]) -> None:
        meta = json.loads(header["__metadata__"]["rdc"])
        found = change(meta)
        header["__metadata__"]["rdc"] = found if isinstance(found, str) else json.dumps(meta if found is None else found)

    return lambda data: with_header(data, changed)


def with_config(**fields: Any) -> Callable[[bytes], bytes]:
    return with_meta(lambda meta: meta["config"].update(fields))


def with_unet(**fields: Any) -> Callable[[bytes], bytes]:
    return with_meta(lambda meta: meta["config"]["unet"].update(fields))


def entry(header: dict[str, Any], **fields: Any) -> None:
    next(v for k, v in header.items() if k != "__metadata__").update(fields)


MALFORMED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "no length": lambda data: data[:5],
    "header cut": lambda data: data[:40],
    "tensors cut": lambda data: data[:-3],
    "tensors longer": lambda data: data + b"\0\0\0",
    "length beyond the file": lambda data: struct.pack("<Q", len(data)) + data[8:],
    "length huge": lambda data: struct.pack("<Q", 2**63) + data[8:],
    "length zero": lambda data: struct.pack("<Q", 0) + data[8:],
    "not JSON": lambda data: with_header(data, lambda h: b"not JSON"),
    "not UTF-8": lambda data: with_header(data, lambda h: b'{"\xff": 1}'),
    "deep JSON": lambda data: with_header(data, lambda h: b"[" * 100_000),
    "a list": lambda data: with_header(data, lambda h: []),
    "a number": lambda data: with_header(data, lambda h: b"3"),
    "no metadata": lambda data: with_header(data, lambda h: h.pop("__metadata__") and None),
    "metadata a list": lambda data: with_header(data, lambda h: h.update(__metadata__=[1])),
    "metadata null": lambda data: with_header(data, lambda h: h.update(__metadata__=None)),
    "metadata without rdc": lambda data: with_header(data, lambda h: h.update(__metadata__={"a": "b"})),
    "shape lies": lambda data: with_header(data, lambda h: entry(h, shape=[10**6])),
    "shape negative": lambda data: with_header(data, lambda h: entry(h, shape=[-1])),
    "offsets lie": lambda data: with_header(data, lambda h: entry(h, data_offsets=[0, 10**9])),
    "offsets a word": lambda data: with_header(data, lambda h: entry(h, data_offsets="all")),
    "dtype unknown": lambda data: with_header(data, lambda h: entry(h, dtype="Q99")),
    "rdc not JSON": with_meta(lambda meta: "{"),
    "rdc deep": with_meta(lambda meta: "[" * 100_000),
    "rdc a list": with_meta(lambda meta: []),
    "rdc null": with_meta(lambda meta: "null"),
    "no kind": with_meta(lambda meta: meta.pop("kind") and None),
    "kind a list": with_meta(lambda meta: meta.update(kind=["denoiser"])),
    "other kind": with_meta(lambda meta: meta.update(kind="classifier")),
    "no hash": with_meta(lambda meta: meta.pop("tensors_sha256") and None),
    "hash a number": with_meta(lambda meta: meta.update(tensors_sha256=3)),
    "other hash": with_meta(lambda meta: meta.update(tensors_sha256="0" * 64)),
    "no config": with_meta(lambda meta: meta.pop("config") and None),
    "config a list": with_meta(lambda meta: meta.update(config=[1])),
    "config null": with_meta(lambda meta: meta.update(config=None)),
    "unknown field": with_config(new=1),
    "unet a number": with_config(unet=3),
    "unet null": with_config(unet=None),
    "branch a word": with_config(branch="none"),
    "data a number": with_config(data=5),
    "sigma_data a word": with_config(sigma_data="half"),
    "sigma_data true": with_config(sigma_data=True),
    "sigma_data NaN": with_config(sigma_data=float("nan")),
    "sigma_data zero": with_config(sigma_data=0),
    "field of unet unknown": with_unet(depth=3),
    "channels a word": with_unet(channels="1"),
    "channels true": with_unet(channels=True),
    "channels a float": with_unet(channels=1.0),
    "patch zero": with_unet(patch=0),
    "no levels": with_unet(channel_mult=[]),
    "levels a number": with_unet(channel_mult=2),
    "levels of floats": with_unet(channel_mult=[1.5]),
    "width negative": with_unet(model_channels=-4),
    "width huge": with_unet(model_channels=4 * 10**12),
    "blocks without end": with_unet(num_blocks=10**9),
    "other width": with_unet(model_channels=8),
    "other resolution": with_unet(resolution=8, channel_mult=[1, 1]),
    "heads without classes": with_unet(heads=2),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_gives_one_line(case: str, stored: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.safetensors"
    path.write_bytes(MALFORMED[case](stored.read_bytes()))
    with pytest.raises(CheckpointError) as error:
        load_denoiser(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message and len(message) < 600


@given(data=st.data())
def test_any_change_of_the_bytes_is_found_or_leaves_the_tensors(stored: Path, data: st.DataObject) -> None:
    content, tensors = bytearray(stored.read_bytes()), read_checkpoint(stored, "denoiser")[0]
    position = data.draw(st.integers(0, 1500) | st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[position] ^= data.draw(st.integers(1, 255))
    else:
        del content[position:]
    path = stored.with_name("changed.safetensors")
    path.write_bytes(content)
    try:
        found = load_denoiser(path).model.state_dict()
    except CheckpointError as error:
        assert "\n" not in str(error)
    else:
        assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in found)


def weights(value: float, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The weights of the tiny network, one of them replaced."""
    tensors = {name: t.to(dtype) for name, t in build(TINY).model.state_dict().items()}
    list(tensors.values())[3].view(-1)[0] = value
    return tensors


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (torch.nan, torch.float32),
        (torch.inf, torch.float32),
        (-torch.inf, torch.bfloat16),
        (torch.nan, torch.float16),
        (1e300, torch.float64),
    ],
)
def test_weights_that_are_not_finite_are_refused(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    write_checkpoint(path, weights(value, dtype), kind="denoiser", config=asdict(TINY))
    with pytest.raises(CheckpointError, match="NaN or infinite.*train again"):
        load_denoiser(path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.complex64])
def test_weights_of_a_type_that_does_not_fit_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "type.safetensors"
    write_checkpoint(path, weights(1, dtype), kind="denoiser", config=asdict(TINY))
    with pytest.raises(CheckpointError, match=f"does not fit its own configuration: .* is .*{dtype}, not"):
        load_denoiser(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_float_type_are_taken(dtype: torch.dtype, tmp_path: Path) -> None:
    path, tensors = tmp_path / "type.safetensors", weights(0.5, dtype)
    write_checkpoint(path, tensors, kind="denoiser", config=asdict(TINY))
    found = load_denoiser(path).model.state_dict()
    assert all(torch.equal(found[name], tensors[name].float()) for name in tensors)


def test_what_is_no_file_gives_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("folder.safetensors", "absent.safetensors", "zero\0.safetensors", "x" * 300 + ".safetensors"):
        with pytest.raises(CheckpointError) as error:
            load_denoiser(tmp_path / name)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(Path, "read_bytes", lambda self: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(CheckpointError, match="not a readable checkpoint.*Permission denied"):
        load_denoiser(stored)


def test_a_shape_that_is_stored_under_another_name_is_named(tmp_path: Path) -> None:
    path, tensors = tmp_path / "name.safetensors", weights(0.5)
    tensors["other"] = tensors.pop(next(iter(tensors)))
    write_checkpoint(path, tensors, kind="denoiser", config=asdict(TINY))
    with pytest.raises(CheckpointError, match="does not fit .* of 2 in all"):
        load_denoiser(path)


@given(seed=st.integers(0, 5))
def test_a_network_comes_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    network, path = tiny_network(seed), tmp_path_factory.mktemp("networks") / "a.safetensors"
    save_denoiser(path, network)
    back = load_denoiser(path)
    assert isinstance(back, EDM) and back.config == network.config
    assert tensors_sha256(back.model.state_dict()) == tensors_sha256(network.model.state_dict())


UNETS = st.tuples(
    st.integers(1, 99),
    st.integers(1, 4),
    st.integers(0, 9),
    st.integers(4, 99),
    st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    st.integers(1, 3),
    st.lists(st.integers(1, 9), max_size=2).map(tuple),
)


@given(UNETS, st.none() | UNETS, st.floats(0.1, 9), st.text(max_size=5))
def test_a_configuration_comes_back_from_json(unet: Any, branch: Any, sigma_data: float, data: str) -> None:
    config = EDMConfig(UNetConfig(*unet), sigma_data, data, UNetConfig(*branch) if branch else None)
    assert from_json(EDMConfig, json.loads(json.dumps(asdict(config)))) == config
