"""Data sets: the embedded one, files of each kind, and what is said when they are missing or wrong."""

import gzip
import io
import struct
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch

from fedsynsam.errors import DataError
from fedsynsam.fl import data
from fedsynsam.fl.data import channels_last, dataset_from_arrays, load_dataset
from fedsynsam.fl.data_files import KEYS, read_idx, read_npz

from .conftest import tiny_arrays


def test_embedded_subset_is_balanced_and_normalised() -> None:
    dataset = load_dataset("fashion-mnist-subset")
    assert dataset.x_train.shape == (10_000, 1, 28, 28)
    assert dataset.x_test.shape == (2_000, 1, 28, 28)
    assert dataset.y_train.bincount().tolist() == [1000] * 10
    assert dataset.y_test.bincount().tolist() == [200] * 10
    assert abs(float(dataset.x_train[:].mean())) < 1e-4
    assert abs(float(dataset.x_train[:].std()) - 1) < 1e-4
    assert torch.equal(dataset.low, dataset.x_train[:].amin(dim=(0, 2, 3)))


def test_embedded_subset_is_checked(monkeypatch) -> None:
    monkeypatch.setattr(data, "EMBEDDED_SHA256", "0" * 64)
    with pytest.raises(DataError, match="damaged: its SHA-256"):
        load_dataset("fashion-mnist-subset")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_images_are_normalised_as_they_are_taken(dtype, channels) -> None:
    raw = np.random.default_rng(0).uniform(0, 256, (12, 5, 6, channels)).astype(dtype)
    labels = np.arange(12) % 2
    dataset = dataset_from_arrays("x", {"x_train": raw, "y_train": labels, "x_test": raw[:2], "y_test": labels[:2]})
    images, indices = dataset.x_train, torch.tensor([[5, 0], [5, 11]])
    assert (images.stored.dtype, len(images), images.shape) == (torch.from_numpy(raw).dtype, 12, (12, channels, 5, 6))
    values = raw.astype(np.float64) / (255 if dtype == np.uint8 else 1)
    expected = ((values - values.mean(axis=(0, 1, 2))) / values.std(axis=(0, 1, 2))).transpose(0, 3, 1, 2)
    taken = images[indices]
    np.testing.assert_allclose(taken.numpy(), expected[indices.numpy()], atol=1e-5)
    assert torch.equal(images[indices.numpy()], taken)
    np.testing.assert_array_equal(images[3:7].numpy(), images[torch.arange(3, 7)].numpy())
    for index in (-1, 12):
        with pytest.raises(IndexError):
            images[torch.tensor([0, index])]
    assert taken.movedim(-3, -1).is_contiguous()  # channels last
    np.testing.assert_allclose(dataset.low.numpy(), expected.min(axis=(0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(dataset.high.numpy(), expected.max(axis=(0, 2, 3)), atol=1e-5)


def idx_bytes(array: np.ndarray) -> bytes:
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder, compressed: bool) -> np.ndarray:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    for part in ("train", "t10k"):
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            raw = idx_bytes(array)
            path = folder / (name + (".gz" if compressed else ""))
            path.write_bytes(gzip.compress(raw) if compressed else raw)
    return images


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("through", ["argument", "environment"])
def test_fashion_mnist_from_idx_files(tmp_path, monkeypatch, compressed, through) -> None:
    images = write_fashion(tmp_path, compressed)
    if through == "environment":
        monkeypatch.setenv("FEDSYNSAM_DATA", str(tmp_path))
    dataset = load_dataset("fashion-mnist", str(tmp_path) if through == "argument" else None)
    pixels = images.astype(np.float64) / 255
    expected = (pixels - pixels.mean()) / pixels.std()
    np.testing.assert_allclose(dataset.x_train[:][:, 0].numpy(), expected, atol=1e-6)
    assert dataset.y_train.tolist() == list(range(10)) * 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-1], "does not fit its shape"),
        (lambda raw: raw + b"x", "does not fit its shape"),
        (lambda raw: b"\x00\x00\x0d" + raw[3:], "not an IDX file"),
        (lambda raw: raw[:3], "not an IDX file"),
        (lambda raw: raw[:9], "not an IDX file"),
    ],
)
def test_damaged_idx(tmp_path, damage, message) -> None:
    path = tmp_path / "file"
    path.write_bytes(damage(idx_bytes(np.zeros((2, 3, 3), np.uint8))))
    with pytest.raises(DataError, match=message):
        read_idx(path)


def test_damaged_gzip(tmp_path) -> None:
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((20, 9, 9), np.uint8)))[:-4])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(path)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_missing_data_name_three_ways(tmp_path, name) -> None:
    with pytest.raises(DataError, match=r"\(1\).*\(2\).*\(3\)"):
        load_dataset(name, str(tmp_path))


def test_missing_npz_names_three_ways() -> None:
    with pytest.raises(DataError, match=r"absent\.npz does not exist; \(1\).*\(2\).*\(3\)"):
        load_dataset("absent.npz")


def test_npz_lacking_an_array(tmp_path) -> None:
    path = tmp_path / "half.npz"
    np.savez(path, x_train=np.zeros(3))
    with pytest.raises(DataError, match="'y_train' is missing"):
        read_npz(path)


def test_npz_that_is_no_archive(tmp_path) -> None:
    path = tmp_path / "text.npz"
    path.write_text("hello")
    with pytest.raises(DataError, match="not a readable"):
        read_npz(path)


def test_channels_in_either_place_give_the_same() -> None:
    arrays = tiny_arrays()
    colour = np.stack([arrays["x_train"]] * 3, axis=1)
    arrays |= {"x_train": colour, "x_test": np.stack([arrays["x_test"]] * 3, axis=1)}
    first = dataset_from_arrays("a", arrays)
    moved = {key: value.transpose(0, 2, 3, 1) if key[0] == "x" else value for key, value in arrays.items()}
    assert torch.equal(first.x_train[:], dataset_from_arrays("b", moved).x_train[:])
    assert first.image_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_train": np.zeros((240, 64))}, r"x_train has shape \(240, 64\)"),
        ({"x_train": np.zeros((240, 8, 8, 2))}, "with 1 or 3 channels"),
        ({"x_train": np.zeros((240, 8, 8), int)}, "x_train has dtype int64"),
        ({"x_train": np.full((240, 8, 8), np.nan)}, "not finite"),
        ({"x_test": np.zeros((60, 9, 9))}, "different shapes"),
        ({"y_train": np.zeros(239, int)}, r"y_train is int64 \(239,\)"),
        ({"y_train": np.zeros(240)}, "expected integers"),
        ({"y_train": np.full(240, -1)}, "labels start at 0"),
        ({"y_train": np.zeros(240, int)}, "at least two classes"),
        ({"y_test": np.full(60, 7)}, "y_test holds label 7, y_train only 0 to 2"),
        ({"x_test": np.zeros((60, 8, 8), np.float16)}, "x_train is uint8, x_test float16; give both in the same unit"),
        ({"x_train": np.zeros((240, 8, 8))}, "x_train is float64, x_test uint8"),
        ({"y_train": np.where(np.arange(240) == 5, 10**12, 0)}, "label 1000000000000; .* training examples, 240"),
        ({"y_train": np.arange(240) + 1}, "y_train holds label 240"),
    ],
)
def test_wrong_arrays_are_named(change, message) -> None:
    with pytest.raises(DataError, match=message):
        dataset_from_arrays("mine", tiny_arrays() | change)


def test_a_class_an_example_and_two_floating_types_are_fine() -> None:
    images = {"x_train": np.random.default_rng(0).random((240, 8, 8)), "x_test": np.zeros((60, 8, 8), np.float32)}
    assert dataset_from_arrays("mine", tiny_arrays() | images | {"y_train": np.arange(240)}).classes == 240


@pytest.mark.parametrize(("name", "label"), [("cifar10", "label"), ("cifar100", "fine_label")])
def test_cifar_from_local_parquet(tmp_path, name, label) -> None:
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    for part in ("train", "test"):
        rows = []
        for image in pixels:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        table = pyarrow.table({"img": rows, label: [0, 1, 2, 0, 1, 2]})
        pyarrow.parquet.write_table(table, tmp_path / f"{part}-00000-of-00001.parquet")
    dataset = load_dataset(name, str(tmp_path))
    assert dataset.image_shape == (3, 32, 32)
    assert dataset.y_train.tolist() == [0, 1, 2, 0, 1, 2]
    expected = (pixels / 255 - (pixels / 255).mean((0, 1, 2))) / (pixels / 255).std((0, 1, 2))
    np.testing.assert_allclose(dataset.x_train[:].permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


def write_images(folder) -> dict[str, np.ndarray]:
    """Three images a class, two of whose names do not sort by number, and a file that is no image; the pixels."""
    from PIL import Image

    pixels = {}
    for part in ("train", "test"):
        for label, name in enumerate(("airplane", "bird")):
            (folder / part / name).mkdir(parents=True)
            drawn = np.random.default_rng([label, len(part)]).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
            for number, image in zip((1, 10, 2), drawn, strict=True):
                Image.fromarray(image).save(folder / part / name / f"{number}.png")
            pixels.setdefault(part, []).append(drawn)
        (folder / part / "bird" / "notes.txt").write_text("no image")
    return {part: np.concatenate(arrays) for part, arrays in pixels.items()}


@pytest.mark.parametrize("inside", ["", "cifar10"])
def test_cifar_from_folders_of_images(tmp_path, inside) -> None:
    pixels = write_images(tmp_path / inside)
    dataset = load_dataset("cifar10", str(tmp_path))
    assert dataset.y_train.tolist() == dataset.y_test.tolist() == [0, 0, 0, 1, 1, 1]
    for images, part in ((dataset.x_train, "train"), (dataset.x_test, "test")):
        np.testing.assert_array_equal(images.stored.numpy(), pixels[part])


def test_wrong_folders_of_images_are_named(tmp_path) -> None:
    from PIL import Image

    write_images(tmp_path)
    odd = tmp_path / "test" / "bird" / "3.png"
    Image.new("RGB", (9, 7)).save(odd)
    with pytest.raises(DataError, match=r"bird/3\.png has 9x7 pixels, .*airplane/1\.png 32x32"):
        load_dataset("cifar10", str(tmp_path))
    odd.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bird/3\.png: an image cannot be decoded"):
        load_dataset("cifar10", str(tmp_path))
    odd.unlink()
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(DataError, match="train has airplane, bird, cat, test airplane, bird"):
        load_dataset("cifar10", str(tmp_path))
    for path in (tmp_path / "train").rglob("*.*"):
        path.unlink()
    (tmp_path / "train" / "cat").rmdir()
    with pytest.raises(DataError, match=r"train: no images \(\.png, "):
        load_dataset("cifar10", str(tmp_path))


@pytest.mark.parametrize(("name", "label"), [("cifar10", "label"), ("cifar100", "fine_label")])
def test_cifar_from_hugging_face(monkeypatch, name, label) -> None:
    """With a stand-in for the package, which needs a network, of the interface that the reader uses."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)

    def load(path: str, split: str) -> dict[str, list]:
        assert path == f"uoft-cs/{name}"
        labels = {"train": [0, 1, 2, 1], "test": [2, 1, 0, 0]}[split]
        return {"img": [Image.fromarray(image) for image in pixels], label: labels}

    stand_in = ModuleType("datasets")
    stand_in.__spec__ = ModuleSpec("datasets", None)
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    monkeypatch.delenv("FEDSYNSAM_DATA", raising=False)
    stand_in.load_dataset = load
    dataset = load_dataset(name)
    assert (dataset.y_train.tolist(), dataset.y_test.tolist()) == ([0, 1, 2, 1], [2, 1, 0, 0])
    assert dataset.image_shape == (3, 32, 32)

    def fail(path: str, split: str) -> None:
        raise ConnectionError("offline")

    stand_in.load_dataset = fail
    with pytest.raises(DataError, match=f"{name}: .*ConnectionError: offline.*--data-dir"):
        load_dataset(name)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for part in ("train", "test"):
        (tmp_path / f"{part}.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="pip install"):
        load_dataset("cifar10", str(tmp_path))


def test_keys_are_what_the_readme_promises() -> None:
    assert KEYS == ("x_train", "y_train", "x_test", "y_test")


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_is_so_for_one_channel_too(channels) -> None:
    images = torch.randn(2, channels, 5, 6)
    last = channels_last(images)
    assert torch.equal(last, images)
    assert last.stride() == (30 * channels, 1, 6 * channels, channels)
