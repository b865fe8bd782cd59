"""Names and shapes: the text form on the wire, and the way between tensors and one row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedsynsam as fs

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
shapes = st.lists(st.integers(0, 30), max_size=4).map(tuple)
manifests = st.dictionaries(names, shapes, max_size=6).map(lambda entries: fs.Manifest(tuple(entries.items())))


@given(manifests)
def test_layout_round_trip(manifest):
    assert fs.Manifest.from_layout(manifest.layout) == manifest
    assert manifest.layout.isascii()
    assert not set(manifest.layout) & set('"\\ \n')


@given(st.text(alphabet="ab%:,x0123456789éFf", max_size=30))
def test_a_layout_is_canonical_or_refused(text):
    try:
        manifest = fs.Manifest.from_layout(text)
    except fs.ArgumentError:
        return
    assert manifest.layout == text


@pytest.mark.parametrize(
    ("update", "layout"),
    [
        ({"conv.weight": torch.zeros(8, 1, 5, 5), "conv.bias": torch.zeros(8)}, "conv.weight:8x1x5x5,conv.bias:8"),
        ({"a b": torch.zeros(()), "ü,:%": torch.zeros(0)}, "a%20b:,%C3%BC%2C%3A%25:0"),
        (torch.zeros(2, 3), ":2x3"),
        (torch.tensor(1.0), ":"),
        ({}, ""),
    ],
)
def test_layouts(update, layout):
    manifest = fs.Manifest.of(update)
    assert manifest.layout == layout
    assert fs.Manifest.from_layout(layout) == manifest


def test_the_order_of_the_dict_is_the_order_of_the_row():
    update = {"b": torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T, "a": torch.tensor(5.0)}
    manifest = fs.Manifest.of(update)
    row = manifest.flatten(update)
    assert row.tolist() == [1, 3, 2, 4, 5]
    parts = manifest.split(row)
    assert list(parts) == ["b", "a"]
    assert torch.equal(parts["b"], update["b"])
    assert parts["a"].shape == ()
    assert [manifest.locate(position) for position in range(5)] == ["b"] * 4 + ["a"]


def test_flatten_copies():
    tensor = torch.ones(4)
    row = fs.Manifest.of(tensor).flatten(tensor)
    tensor.fill_(2)
    assert row.tolist() == [1] * 4


def test_entries_may_be_any_sequences_and_are_kept_as_tuples():
    manifest = fs.Manifest([["w", [100, 10]], ("b", torch.Size([100]))])
    assert manifest.entries == (("w", (100, 10)), ("b", (100,)))
    assert manifest == fs.Manifest((("w", (100, 10)), ("b", (100,))))
    update = {"w": torch.zeros(100, 10), "b": torch.zeros(100)}
    compressor = fs.compressor("topk:0.1")
    blob = compressor.compress(update, compressor.init(manifest), seed=0)[0].encode()
    assert fs.Payload.decode(blob, like=manifest).manifest == manifest


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"w": (3,)}, "tensor names must be strings|an entry of a manifest is a pair"),
        ((("w", 3),), r"an entry of a manifest is a pair of a name and a shape, not \('w', 3\)"),
        ((("w", (3,), 1),), "an entry of a manifest is a pair"),
        (((1, (3,)),), "tensor names must be strings, not 1"),
        ((("w", (True,)),), "whole numbers"),
        ((("w", (2.0,)),), "whole numbers"),
    ],
)
def test_entries_that_are_none(entries, words):
    with pytest.raises(fs.ArgumentError, match=words):
        fs.Manifest(entries)


def test_a_module_stands_for_its_parameters_and_shapes_need_no_memory():
    model = torch.nn.BatchNorm1d(4)
    update = {name: torch.ones_like(tensor) for name, tensor in model.named_parameters()}
    assert fs.Manifest.of(model) == fs.Manifest.of(update)
    compressor = fs.compressor("topk:0.5")
    with torch.device("meta"):
        shapes = torch.nn.BatchNorm1d(4)
    for like in (model, shapes, fs.Manifest.of(update)):
        blob = fs.Uplink("topk:0.5", like=like, seed=0).encode(update)
        payload, state = compressor.compress(update, compressor.init(like), seed=fs.row_seed(0, 0, 0))
        assert state.residual.device.type == "cpu"
        assert blob == payload.encode()
        received = fs.Payload.decode(blob, like=like)
        assert received.encode() == blob
        assert received.decompress()["weight"].tolist() == [1] * 4


def test_bounds():
    with pytest.raises(fs.ArgumentError, match="too large for one payload"):
        fs.Manifest((("w", (2**31,)),))
    assert fs.Manifest((("w", (2**31 - 1,)),)).num_elements == 2**31 - 1
    with pytest.raises(fs.ArgumentError, match="at most 64"):
        fs.Manifest((("w", (1,) * 65),))
    with pytest.raises(fs.ArgumentError, match="characters"):
        fs.Manifest((("w" * 2**20, (1,)),))
    with pytest.raises(fs.ArgumentError, match="names tensor 'w' twice"):
        fs.Manifest((("w", (1,)), ("w", (2,))))
    with pytest.raises(fs.ArgumentError, match="whole numbers"):
        fs.Manifest((("w", (-1,)),))
