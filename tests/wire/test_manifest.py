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
