"""Every way in which a payload can be wrong, made by hand, must raise PayloadError naming what is wrong.

The bytes are built here with json and struct, not by the library's encoder.
"""

import json
import math
import struct

import numpy as np
import pytest
import torch

import fedsynsam as fs

LIKE = {"w": torch.zeros(8)}


def forge(spec, tensors, *, layout="w:8", metadata=None, entries=None, extra=b"", pad=True, text=None):
    """Return a payload of hand-made tensors, given as name → (dtype, items, bytes); entries override the header's."""
    header, data = {"__metadata__": {"fedsynsam": "1", "layout": layout, "spec": spec}}, b""
    header["__metadata__"].update(metadata or {})
    for name, (dtype, items, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [items], "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    for name, entry in (entries or {}).items():
        header[name] = {**header.get(name, {}), **entry}
    text = json.dumps(header, separators=(",", ":")) if text is None else text
    body = text.encode("utf-8") if isinstance(text, str) else text
    if pad:
        body += b" " * (-len(body) % 8)
    return struct.pack("<Q", len(body)) + body + data + extra


def floats(*values):
    return ("F32", len(values), struct.pack(f"<{len(values)}f", *values))


def words(*values):
    return ("U32", len(values), struct.pack(f"<{len(values)}I", *values))


def codes(*values):
    return ("U8", len(values), bytes(values))


# n = 8, topk:0.25: k = 2, l = 2, low: 2·2 bits in one word; high: 2 + (7 >> 2) = 3 bits in one word.
def topk(low=0b0010, high=0b101, values=(3.0, -4.0), **changes):
    return forge("topk:0.25", {"indices": words(low, high), "values": floats(*values)}, **changes)


# quantize:4[bucket=8]: one bucket of 8 values in 4 bytes.
def quantize(scale=1.0, content=(0x10, 0x09, 0, 0), spec="quantize:4[bucket=8]", scale_bits=None, **changes):
    scales = floats(scale) if scale_bits is None else words(scale_bits)
    return forge(spec, {"scales": ("F32", 1, scales[2]), "codes": codes(*content)}, **changes)


def refuse(blob, what, like=LIKE, **options):
    with pytest.raises(fs.PayloadError, match=what):
        fs.Payload.decode(blob, like=like, **options)


def test_the_unchanged_forgeries_are_legal():
    payload = fs.Payload.decode(topk(), like=LIKE)
    assert payload.decompress()["w"].tolist() == [0, 0, 3, 0, -4, 0, 0, 0]
    assert payload.encode() == topk()
    payload = fs.Payload.decode(quantize(), like=LIKE)
    step = np.float32(1) / np.float32(7)
    assert payload.decompress()["w"].tolist() == [0, np.float32(-7) * step, 0, 0, step, 0, 0, 0]
    assert payload.encode() == quantize()


@pytest.mark.parametrize("length", range(8))
def test_too_short_for_a_length(length):
    refuse(topk()[:length], f"has {length} bytes")


def test_header_lengths():
    refuse(struct.pack("<Q", 2**63) + b"{}", "header too long")
    refuse(struct.pack("<Q", 2**20 + 1) + b"{}" * 2**19 + b" ", "header too long")
    refuse(topk(text=json.dumps({"a": "b" * 3000})), "header too long")  # longer than one for this layout can be
    refuse(topk()[:100], "cut off inside the header")
    with pytest.raises(fs.PayloadError, match="header too long"):
        fs.Payload.inspect(struct.pack("<Q", 2**20 + 8) + b" " * (2**20 + 8))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[]", "JSON object, not list"),
        ("null", "JSON object"),
        ('{"é":1}', "not JSON in ASCII"),
        (b"\xff\xfe", "not JSON in ASCII"),
        ('{"a":1,"a":1}', "duplicate key 'a'"),
        ('{"__metadata__":{"spec":"none","spec":"none"}}', "duplicate key 'spec'"),
        ('{"a":1.5}', "only whole numbers"),
        ('{"a":NaN}', "only whole numbers"),
        ('{"a":1e400}', "only whole numbers"),
        ('{"a":' + "9" * 200 + "}", "200 digits"),
        ("[" * 500, "not JSON"),
        ('{"a":' * 100, "not JSON"),
    ],
)
def test_headers_that_are_no_json_object(text, what):
    refuse(topk(text=text), what)


def test_deep_nesting_does_not_overflow_the_stack():
    blob = forge("none", {}, text="[" * 500_000)
    with pytest.raises(fs.PayloadError, match="not JSON"):
        fs.Payload.inspect(blob)


def test_metadata():
    refuse(topk(text="{}"), "no __metadata__")
    refuse(topk(text='{"__metadata__":[]}'), "no __metadata__")
    refuse(topk(text='{"__metadata__":{}}'), "no 'fedsynsam'")
    refuse(topk(metadata={"fedsynsam": "2"}), "version '2' is not supported")
    refuse(topk(metadata={"fedsynsam": 1}), "version '1' is not supported")
    refuse(topk(metadata={"format": "pt"}), "unknown metadata key 'format'")
    refuse(topk(metadata={"spec": 3}), "string 'spec'")
    refuse(topk(metadata={"layout": None}), "string 'layout'")


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("zip:9", "unknown compressor 'zip'; known ones: none, topk, chunktopk, quantize"),
        ("", "no stage"),
        ("topk", "needs its density"),
        ("topk:0", "out of range"),
        ("topk:nan", "wrong"),
        ("topk:1e999", "out of range"),
        ("topk:0.250", "canonical form 'topk:0.25'"),
        (" topk:0.25", "canonical"),
        ("topk:0.25[residual=true]", "canonical"),
        ("quantize:4[bucket=4294967296]", "out of range"),
        ("quantize:3", "out of range"),
        ("quantize:4+topk:0.25", "followed by one quantizer"),
        ("topk:0.25" * 30, "270 characters"),
    ],
)
def test_specs(spec, what):
    refuse(topk(metadata={"spec": spec}), what)


def test_a_pinned_spec():
    refuse(topk(), "has the spec 'topk:0.25', expected 'topk:0.5'", spec="topk:0.5")
    assert fs.Payload.decode(topk(), like=LIKE, spec=fs.TopK(0.25)).spec == "topk:0.25"
    with pytest.raises(fs.SpecError, match="unknown compressor"):
        fs.Payload.decode(topk(), like=LIKE, spec="zip")


@pytest.mark.parametrize(
    ("layout", "what"),
    [
        ("w:9", r"tensor 'w' has the shape \[9\], expected \[8\]"),
        ("w:2x4", r"tensor 'w' has the shape \[2, 4\]"),
        ("w:", r"tensor 'w' has the shape \[\]"),
        ("v:8", "tensors 'w' missing"),
        ("w:8,v:1", "tensors 'v' not expected"),
        (":8", "tensors 'w' missing"),
        ("", "tensors 'w' missing"),
        ("w", "must be name:SIZE"),
        ("w:8,", "must be name:SIZE"),
        ("w:-8", "must be name:SIZE"),
        ("w:08", "must be name:SIZE"),
        ("w:8x", "must be name:SIZE"),
        ("w:99999999999", "must be name:SIZE"),
        ("w:" + "x".join("1" * 65), "must be name:SIZE"),
        ("w:9999999999x9999999999", "too large"),
        ("%77:8", "canonical"),
        ("%FF:8", "UTF-8"),
        ("w:8,w:8", "twice"),
        (":8,w:8", "reserved"),
    ],
)
def test_layouts(layout, what):
    refuse(topk(layout=layout), what)


def test_the_order_of_the_tensors_counts():
    like = {"a": torch.zeros(4), "b": torch.zeros(4)}
    assert fs.Payload.decode(topk(layout="a:4,b:4"), like=like).num_elements == 8
    refuse(topk(layout="b:4,a:4"), "another order", like=like)


def test_tensor_entries():
    tensors = {"indices": words(2, 5), "values": floats(3, -4)}
    refuse(forge("topk:0.25", {"indices": tensors["indices"]}), "tensor 'values' is missing")
    refuse(forge("topk:0.25", {**tensors, "more": floats()}), "tensor 'more' is not expected")
    refuse(forge("none", tensors), "'indices' is not expected")
    refuse(topk(values=(1.0, 2.0, 3.0)), r"'values' has shape \[3\], expected \[2\]")
    refuse(topk(entries={"values": {"dtype": "F64"}}), "'values' has dtype F64, expected F32")
    refuse(topk(entries={"indices": {"shape": [1, 2]}}), r"'indices' has shape \[1, 2\]")
    refuse(topk(entries={"indices": {"shape": [2**62]}}), "'indices' has shape")
    refuse(topk(entries={"indices": {"shape": -2}}), "'indices' has shape -2")
    refuse(topk(entries={"values": {"data_offsets": [0, 8]}}), r"has data_offsets \[0, 8\], expected \[8, 16\]")
    refuse(topk(entries={"values": {"data_offsets": [8, 2**62]}}), "'values' has data_offsets")
    refuse(topk(entries={"values": {"more": 1}}), "exactly the keys")
    header = {"__metadata__": {"fedsynsam": "1", "layout": "w:8", "spec": "none"}, "values": 5}
    refuse(forge("none", {}, text=json.dumps(header)), "exactly the keys")


def test_only_one_header_is_legal():
    blob = topk()
    length = struct.unpack("<Q", blob[:8])[0]
    header = json.loads(blob[8 : 8 + length])
    spaced = json.dumps(header)
    turned = json.dumps(dict(reversed(header.items())), separators=(",", ":"))
    escaped = blob[8 : 8 + length].decode().replace("w:8", "\\u0077:8")
    for text in (spaced, turned, escaped, json.dumps(header, separators=(",", ":")) + " " * 8):
        refuse(topk(text=text), "canonical form")
    refuse(topk(pad=False, text=blob[8 : 8 + length].decode().rstrip()), "canonical form")
    booleans = blob[8 : 8 + length].decode().replace("[0,8]", "[false,8]")
    refuse(topk(text=booleans), "canonical form")


def test_lengths_of_the_data():
    refuse(topk() + b"\0", "trailing bytes: 17 bytes follow the header, 16 expected")
    refuse(topk()[:-1], "cut off: 15 bytes follow the header, 16 expected")
    refuse(topk()[:-16], "cut off: 0 bytes")


@pytest.mark.parametrize(
    ("low", "high", "what"),
    [
        (0b0010, 0b001, "mark 1 indices, 2 expected"),
        (0b0010, 0b111, "mark 3 indices"),
        (0b0010, 0b000, "mark 0 indices"),
        (0b10000, 0b101, "padding bits"),
        (0b0010, 0b1001, "padding bits"),
        (0b0101, 0b011, "not ascending at entry 1"),  # 1, 1
        (0b0110, 0b011, "not ascending at entry 1"),  # 2, 1
    ],
)
def test_indices(low, high, what):
    refuse(topk(low=low, high=high), what)


def test_indices_out_of_range():
    # n = 5, k = 1: l = 2, low 2 bits, high 1 + (4 >> 2) = 2 bits: index 4 + 3 = 7 can be written
    like = {"w": torch.zeros(5)}
    tensors = {"indices": words(0b11, 0b10), "values": floats(1)}
    refuse(forge("topk:0.2", tensors, layout="w:5"), "7 is out of range for 5 elements", like=like)


def test_indices_must_lie_in_their_chunks():
    # n = 8 in chunks of 4, one index each: k = 2, as in topk:0.25
    spec = "chunktopk:0.25[chunk=4]"
    tensors = {"indices": words(0b0010, 0b101), "values": floats(3, -4)}  # 2, 4
    assert fs.Payload.decode(forge(spec, tensors), like=LIKE).encode() == forge(spec, tensors)
    tensors["indices"] = words(0b1110, 0b011)  # 2, 3: both in the first chunk
    refuse(forge(spec, tensors), "entry 1 is 3, outside chunk 1")
    like = {"w": torch.zeros(6)}  # a full chunk of 4 and a tail of 2; n // k = 3, l = 1; low 0, 1; high 1, 3
    tensors["indices"] = words(0b10, 0b1001)  # 0, 5
    assert fs.Payload.decode(forge(spec, tensors, layout="w:6"), like=like).num_sent == 2
    tensors["indices"] = words(0b10, 0b0101)  # 0, 3
    refuse(forge(spec, tensors, layout="w:6"), "outside chunk 1", like=like)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_must_be_finite(value):
    refuse(topk(values=(1.0, value)), f"values: entry 1 is {value}")
    refuse(forge("none", {"values": floats(*[0.0] * 7, value)}), "values: entry 7")


@pytest.mark.parametrize(
    ("bits", "shown"),
    [
        (0x7FC00000, "nan"),
        (0xFFC00000, "nan"),
        (0x7F800000, "inf"),
        (0xFF800000, "-inf"),
        (0xBF800000, "-1.0"),
        (0x80000000, "-0.0"),
        (0x00000001, "1.4.*e-45"),
        (0x037FFFFF, "7.5.*e-37"),
    ],
)
def test_scales(bits, shown):
    refuse(
        quantize(scale_bits=bits), f"scales: bucket 0 has the scale {shown}; it must be finite, not negative, and 0 or"
    )


@pytest.mark.parametrize("scale_bits", [0x03800000, 0x7F7FFFFF])
def test_extreme_scales_are_legal_and_stay_finite(scale_bits):
    for spec, content in (("quantize:4[bucket=8]", [0x77] * 4), ("quantize:8[bucket=8]", [127] * 8)):
        payload = fs.Payload.decode(quantize(scale_bits=scale_bits, spec=spec, content=content), like=LIKE)
        assert torch.isfinite(payload.decompress()["w"]).all()


def test_codes_out_of_range():
    refuse(quantize(content=(0, 0, 0x08, 0)), "codes: byte 2 is 0x08; .*illegal code -8")
    refuse(quantize(content=(0x80, 0, 0, 0)), "codes: byte 0")
    refuse(quantize(content=(0, 0b10_00), spec="quantize:2[bucket=8]"), "illegal code -2")
    refuse(quantize(content=(0, 0, 0, 0, 0, 0, 0, 0x80), spec="quantize:8[bucket=8]"), "illegal code -128")
    assert fs.Payload.decode(quantize(content=(0xFF,), spec="quantize:1[bucket=8]"), like=LIKE)


def test_codes_of_a_zero_bucket():
    assert fs.Payload.decode(quantize(scale=0.0, content=(0, 0, 0, 0)), like=LIKE)
    refuse(quantize(scale=0.0), "bucket 0 has the scale 0, but codes")
    refuse(quantize(scale=0.0, content=(1,), spec="quantize:1[bucket=8]"), "bucket 0 has the scale 0")
    tensors = {"scales": floats(1, 0), "codes": codes(1, 1, 1, 1, 0, 0, 0, 1)}
    refuse(forge("quantize:4[bucket=8]", tensors, layout="w:16"), "bucket 1", like={"w": torch.zeros(16)})


@pytest.mark.parametrize(
    ("n", "spec", "content"),
    [
        (5, "quantize:4[bucket=8]", (0, 0x10, 0, 0)),  # value 5 is in byte 1, high half
        (3, "quantize:4[bucket=8]", (0, 0, 0x10)),  # value 6
        (7, "quantize:1[bucket=8]", (0x80,)),
        (3, "quantize:2[bucket=8]", (0, 0b0100)),  # value 3
    ],
)
def test_padding_of_codes(n, spec, content):
    tensors = {"scales": floats(1), "codes": codes(*content)}
    like = {"w": torch.zeros(n)}
    refuse(forge(spec, tensors, layout=f"w:{n}"), f"padding behind the {n} values", like=like)
    tensors["codes"] = codes(*[0] * len(content))
    assert fs.Payload.decode(forge(spec, tensors, layout=f"w:{n}"), like=like).num_elements == n


def test_arguments_of_decode():
    with pytest.raises(fs.ArgumentError, match="decoded from bytes, not from str"):
        fs.Payload.decode("abc", like=LIKE)
    with pytest.raises(fs.ArgumentError, match="tensor or a dict"):
        fs.Payload.decode(topk(), like=8)
    refuse(memoryview(np.zeros((0, 4), np.uint8)), "has 0 bytes", like=LIKE)  # nothing at all, of an odd shape
    for blob in (bytearray(topk()), memoryview(topk())):
        assert fs.Payload.decode(blob, like=fs.Manifest.of(LIKE)).wire_bytes == len(topk())


def test_inspect_is_as_strict_as_decode():
    for blob, what in (
        (topk(low=0b10000), "padding bits"),
        (topk() + b"\0", "trailing"),
        (quantize(scale=-1.0), "negative"),
        (topk(layout="w:08"), "name:SIZE"),
        (topk(layout="w:2000000000"), "shape"),
    ):
        with pytest.raises(fs.PayloadError, match=what):
            fs.Payload.inspect(blob)
    info = fs.Payload.inspect(topk())
    assert (info.version, info.spec, info.num_elements, info.num_sent) == ("1", "topk:0.25", 8, 2)
    assert info.manifest == fs.Manifest.of(LIKE)
    assert [section.name for section in info.sections] == ["container", "indices", "values"]
    assert sum(section.nbytes for section in info.sections) == info.wire_bytes == len(topk())
    assert info.sections[2].bits_per_value == 32


def test_a_decoded_payload_does_not_follow_its_buffer():
    blob = bytearray(topk())
    payload = fs.Payload.decode(blob, like=LIKE)
    blob[:] = bytes(len(blob))
    assert payload.encode() == topk()
