"""Readers of data set files: IDX (Fashion-MNIST), parquet in the Hugging Face schema or images (CIFAR), and .npz."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from fedsynsam.errors import DataError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
Arrays = dict[str, np.ndarray]
KEYS = ("x_train", "y_train", "x_test", "y_test")
IMAGES = (".png", ".jpg", ".jpeg", ".bmp")


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped when its name ends in .gz; `DataError` if it is damaged."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path} is not an IDX file of unsigned bytes (its magic number is {raw[:4].hex()})")
    rank = raw[3]
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=rank, offset=4))
    if len(raw) != 4 + 4 * rank + int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} holds {len(raw)} bytes, which does not fit its shape {shape}; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def read_fashion_mnist(data_dir: str | None) -> Arrays:
    """The full Fashion-MNIST from IDX files in `data_dir`, $FEDSYNSAM_DATA or Debian's folder."""
    names = {
        "x_train": "train-images-idx3-ubyte",
        "y_train": "train-labels-idx1-ubyte",
        "x_test": "t10k-images-idx3-ubyte",
        "y_test": "t10k-labels-idx1-ubyte",
    }
    folders = _folders(data_dir, DEBIAN_FOLDER)
    for folder in folders:
        paths = {key: _first_existing(folder / f"{name}.gz", folder / name) for key, name in names.items()}
        if all(path is not None for path in paths.values()):
            return {key: read_idx(path) for key, path in paths.items() if path is not None}
    raise DataError(
        f"fashion-mnist: the four IDX files were not found in {', '.join(map(str, folders))}; get them by "
        "(1) apt install dataset-fashion-mnist, or (2) downloading them from "
        "github.com/zalandoresearch/fashion-mnist and giving their folder as --data-dir or $FEDSYNSAM_DATA, or "
        "(3) do without them: --dataset fashion-mnist-subset is inside the package"
    )


def read_cifar(name: str, data_dir: str | None) -> Arrays:
    """CIFAR-10 or CIFAR-100 (`name`) from local parquet files or images, else through Hugging Face `datasets`."""
    label = "label" if name == "cifar10" else "fine_label"
    folders = _folders(data_dir)
    for folder in folders:
        files = {part: _parquet_files(folder, name, part) for part in ("train", "test")}
        if all(files.values()):
            return _join({part: _read_parquet(paths, label) for part, paths in files.items()})
        root = _own_folder(folder, name)
        if (root / "train").is_dir() and (root / "test").is_dir():
            return _read_image_folders(root)
    if importlib.util.find_spec("datasets") is not None and data_dir is None:
        return _join({part: _read_hub(name, part, label) for part in ("train", "test")})
    searched = (
        "neither train*.parquet and test*.parquet nor folders train and test of images in "
        f"{', '.join(map(str, folders))}"
        if folders
        else "no folder given"
    )
    raise DataError(
        f"{name}: {searched}; get it by (1) pip install 'fedsynsam[data]', which fetches it through Hugging Face "
        f"datasets, or (2) putting the parquet files of the data set uoft-cs/{name} (needs pyarrow), or images as "
        "train/CLASS/*.png and test/CLASS/*.png, in a folder given as --data-dir or $FEDSYNSAM_DATA, or (3) giving "
        f"your own .npz with {' '.join(KEYS)} as --dataset FILE.npz"
    )


def read_npz(path: Path) -> Arrays:
    """The four arrays of an .npz file; `DataError` when the file or one of them is missing."""
    try:
        archive = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise DataError(f"{path} holds one array; an .npz data set holds {', '.join(KEYS)} (numpy.savez makes it)")
        with archive:
            missing = [key for key in KEYS if key not in archive.files]
            if missing:
                raise DataError(f"{path}: array {missing[0]!r} is missing; an .npz data set holds {', '.join(KEYS)}")
            return {key: archive[key] for key in KEYS}
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist; (1) give the path of an .npz that holds {', '.join(KEYS)}, or (2) name a known "
            "data set, or (3) use the embedded --dataset fashion-mnist-subset"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a readable .npz file: {error}") from error


def _folders(data_dir: str | None, *defaults: Path) -> list[Path]:
    """Where to look: a given folder alone, else the environment's, then `defaults`."""
    if data_dir is not None:
        return [Path(data_dir)]
    environment = os.environ.get("FEDSYNSAM_DATA")
    return ([Path(environment)] if environment else []) + list(defaults)


def _first_existing(*paths: Path) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _own_folder(folder: Path, name: str) -> Path:
    """`folder/name` if that exists, else `folder`."""
    return folder / name if (folder / name).is_dir() else folder


def _parquet_files(folder: Path, name: str, part: str) -> list[Path]:
    """Parquet files of `part` in the data set's folder, subfolders included."""
    return sorted(_own_folder(folder, name).rglob(f"{part}*.parquet"))


def _read_parquet(paths: list[Path], label: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{paths[0]}: reading parquet needs pyarrow: pip install 'fedsynsam[data]'") from None
    images, labels = [], []
    for path in paths:
        try:
            table = pyarrow.parquet.read_table(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise DataError(f"{path} is not a readable parquet file: {error}") from error
        column = next((name for name in ("img", "image") if name in table.column_names), None)
        if column is None or label not in table.column_names:
            raise DataError(f"{path} has columns {table.column_names}; expected 'img' (or 'image') and {label!r}")
        images += [_decode_image(row["bytes"], path) for row in table[column].to_pylist()]
        labels.append(table[label].to_numpy())
    return np.stack(images), np.concatenate(labels)


def _read_image_folders(root: Path) -> Arrays:
    """Images `train/CLASS/*` and `test/CLASS/*` in the order of their names; labels are the places of the classes'."""
    classes = {
        part: sorted(path.name for path in (root / part).iterdir() if path.is_dir()) for part in ("train", "test")
    }
    if not classes["train"] or classes["train"] != classes["test"]:
        raise DataError(
            f"{root}: train and test must have the same folders, one a class; train has "
            f"{', '.join(classes['train']) or 'none'}, test {', '.join(classes['test']) or 'none'}"
        )
    parts = {}
    for part, names in classes.items():
        files = [
            (path, label)
            for label, name in enumerate(names)
            for path in sorted((root / part / name).iterdir())
            if path.suffix.lower() in IMAGES
        ]
        if not files:
            raise DataError(f"{root / part}: no images ({', '.join(IMAGES)}) in the folders of its classes")
        images = [_decode_image(path.read_bytes(), path) for path, _ in files]
        for (path, _), image in zip(files, images, strict=True):
            if image.shape != images[0].shape:
                raise DataError(
                    f"{path} has {_size(image)} pixels, {files[0][0]} {_size(images[0])}; all must be alike"
                )
        parts[part] = (np.stack(images), np.asarray([label for _, label in files]))
    return _join(parts)


def _size(image: np.ndarray) -> str:
    """Width x height."""
    return f"{image.shape[1]}x{image.shape[0]}"


def _decode_image(blob: bytes, path: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError  # comes with matplotlib

    try:
        return np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: an image cannot be decoded: {error}") from error


def _read_hub(name: str, part: str, label: str) -> tuple[np.ndarray, np.ndarray]:
    import datasets

    try:
        rows = datasets.load_dataset(f"uoft-cs/{name}", split=part)
    except Exception as error:  # the hub client raises many unrelated types when it is offline
        raise DataError(
            f"{name}: Hugging Face datasets could not load it ({type(error).__name__}: {error}); put its parquet "
            "files in a folder and give it as --data-dir"
        ) from error
    return np.stack([np.asarray(image.convert("RGB")) for image in rows["img"]]), np.asarray(rows[label])


def _join(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> Arrays:
    return {f"{kind}_{part}": arrays[i] for part, arrays in parts.items() for i, kind in enumerate("xy")}
