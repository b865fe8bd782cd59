"""Spec strings: canonical form, round trip, and errors that say what would be right."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedsynsam as fs

CANONICAL = [
    ("none", fs.Identity()),
    ("topk:0.01", fs.TopK(0.01)),
    ("topk:1", fs.TopK(1)),
    ("topk:5e-05[residual=false]", fs.TopK(0.00005, residual=False)),
    ("chunktopk:0.05", fs.ChunkTopK(0.05)),
    ("chunktopk:0.05[chunk=1024,residual=false]", fs.ChunkTopK(0.05, 1024, False)),
    ("quantize:4", fs.Quantize(4)),
    ("quantize:1[bucket=64,norm=l2,rounding=nearest,residual=true]", fs.Quantize(1, 64, "l2", "nearest", True)),
    ("topk:0.01+quantize:4", fs.Chain(fs.TopK(0.01), fs.Quantize(bits=4))),
    ("chunktopk:0.1[chunk=256]+quantize:2[norm=l2]", fs.Chain(fs.ChunkTopK(0.1, 256), fs.Quantize(2, norm="l2"))),
]


@pytest.mark.parametrize(("spec", "compressor"), CANONICAL)
def test_canonical_strings(spec, compressor):
    assert fs.compressor(spec) == compressor
    assert str(compressor) == spec
    assert hash(fs.compressor(spec)) == hash(compressor)
    assert eval(repr(compressor), vars(fs)) == compressor


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (" topk:0.010 + quantize:4[bucket=512] ", "topk:0.01+quantize:4"),
        ("topk:1.0", "topk:1"),
        ("topk:1e-2[residual=true]", "topk:0.01"),
        ("quantize:4[rounding=nearest,bucket=64]", "quantize:4[bucket=64,rounding=nearest]"),
        ("chunktopk:0.5[ chunk=4096 ]", "chunktopk:0.5"),
    ],
)
def test_other_spellings_become_canonical(text, canonical):
    assert str(fs.compressor(text)) == canonical


densities = st.floats(min_value=0, max_value=1, exclude_min=True)
sparsifiers = st.one_of(
    st.builds(fs.TopK, densities, st.booleans()),
    st.builds(fs.ChunkTopK, densities, st.integers(1, 65536), st.booleans()),
)


def quantizers(residual):
    return st.builds(
        fs.Quantize,
        st.sampled_from([1, 2, 4, 8]),
        st.sampled_from([2**power for power in range(3, 17)]),
        st.sampled_from(["max", "l2"]),
        st.sampled_from(["stochastic", "nearest"]),
        residual,
    )


compressors = st.one_of(
    st.just(fs.Identity()),
    sparsifiers,
    quantizers(st.booleans()),
    st.builds(fs.Chain, sparsifiers, quantizers(st.just(False))),
)


@given(compressors)
def test_round_trip(compressor):
    again = fs.compressor(str(compressor))
    assert again == compressor
    assert str(again) == str(compressor)
    assert hash(again) == hash(compressor)


@given(compressors, compressors)
def test_equal_exactly_when_the_strings_are(one, other):
    assert (one == other) == (str(one) == str(other))


@given(st.text(max_size=40))
def test_any_text_is_a_spec_or_a_spec_error(text):
    try:
        compressor = fs.compressor(text)
    except fs.SpecError:
        return
    assert fs.compressor(str(compressor)) == compressor


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("topq:0.1", r"unknown compressor 'topq'; known ones: none, topk, chunktopk, quantize"),
        ("", "is no stage"),
        ("TOPK:0.1", "is no stage"),
        ("topk", "topk needs its density after a colon: a number in"),
        ("topk:", "density='' is wrong"),
        ("topk:1.5", r"density=1.5 is out of range; it must be a number in \(0, 1\]"),
        ("topk:0", "out of range"),
        ("topk:-0.1", "density='-0.1' is wrong"),
        ("topk:0_1", "wrong"),
        ("topk:inf", "wrong"),
        ("topk:0.1[k=3]", "topk has no option 'k'; it knows: residual"),
        ("topk:0.1[residual=yes]", "it must be true or false"),
        ("topk:0.1[residual]", "given once, as residual=value"),
        ("topk:0.1[]", "no option ''"),
        ("chunktopk:0.1[chunk=0]", "whole number from 1 to 65536"),
        ("chunktopk:0.1[chunk=16.0]", "whole number"),
        ("none:1", "none takes no argument"),
        ("quantize:3", "it must be 1, 2, 4 or 8"),
        ("quantize:4[bucket=500]", "power of two from 8 to 65536"),
        ("quantize:4[norm=l1]", "it must be max or l2"),
        ("quantize:4[norm=l2,norm=l2]", "given once"),
        ("quantize:4+topk:0.1", r"quantize\+topk: stages must be one sparsifier .* followed by one quantizer"),
        ("topk:0.1+topk:0.1", "one sparsifier"),
        ("topk:0.1+none", "one sparsifier"),
        ("topk:0.1+quantize:4+quantize:4", "one sparsifier"),
        ("topk:0.1+quantize:4[residual=true]", "the residual belongs to topk"),
        ("topk:0.1]", "is no stage"),
    ],
)
def test_errors_say_what_would_be_right(text, message):
    with pytest.raises(fs.SpecError, match=message):
        fs.compressor(text)


def test_errors_of_the_constructors():
    with pytest.raises(fs.SpecError, match=r"density=2\.0 is out of range"):
        fs.TopK(2)
    with pytest.raises(fs.SpecError, match=r"density='0\.1' is wrong"):
        fs.TopK("0.1")
    with pytest.raises(fs.SpecError, match="residual=1 is wrong"):
        fs.TopK(0.1, residual=1)
    with pytest.raises(fs.SpecError, match="bits=True is wrong"):
        fs.Quantize(True)
    with pytest.raises(fs.SpecError, match="one sparsifier"):
        fs.Chain(fs.Quantize(4), fs.TopK(0.1))
    with pytest.raises(fs.SpecError, match="two compressors of one stage"):
        fs.Chain(fs.Chain(fs.TopK(0.1), fs.Quantize(4)), fs.Quantize(4))
    with pytest.raises(fs.SpecError, match="must be a string"):
        fs.compressor(None)


def test_compressors_do_not_change():
    with pytest.raises(AttributeError):
        fs.TopK(0.1).density = 0.2
