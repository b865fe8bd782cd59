"""The build finds a CUDA compiler wherever it lies, and calls it for the right architectures."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "csrc"))

import build_backend
import cuda_toolkit

NVCC = """#!/bin/sh
case "$1" in
  --dryrun)
    echo '#$ _HERE_={top}/bin' >&2
    echo '#$ TOP={top}/bin/..' >&2
    echo '#$ INCLUDES="-I{top}/bin/../{target}/include"  ' >&2
    echo '#$ LIBRARIES=  "-L{top}/bin/../{target}/lib{size}/stubs" "-L{top}/bin/../{target}/lib{size}"' >&2 ;;
  --list-gpu-code) printf 'sm_80\\nsm_90\\n{codes}' ;;
  --version) echo 'Cuda compilation tools, release 13.0, V13.0.88' ;;
esac
"""


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a shell and without any nvcc; return the folder that PATH holds."""
    for name in ("CUDA_HOME", "CUDA_PATH", "FEDSYNSAM_CUDA", "FEDSYNSAM_CUDA_ARCHS"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site-packages")])
    return folder


def make_toolkit(top: Path, target: str = "targets/x86_64-linux", size: str = "", codes: str = "") -> Path:
    """Lay out a toolkit whose nvcc answers like a real one; return that nvcc."""
    includes, libraries = top / target / "include", top / target / "lib"
    for folder, name in ((includes, "cuda_runtime.h"), (libraries, "libcudart_static.a")):
        folder.mkdir(parents=True)
        (folder / name).touch()
    (top / "bin").mkdir(exist_ok=True)
    nvcc = top / "bin" / "nvcc"
    nvcc.write_text(NVCC.format(top=top, target=target, size=size, codes=codes))
    nvcc.chmod(0o755)
    return nvcc


def test_none_where_there_is_none(no_nvcc: Path) -> None:
    assert cuda_toolkit.find_toolkit() is None


def test_a_wrapper_script_on_the_path(no_nvcc: Path, tmp_path: Path) -> None:
    nvcc = make_toolkit(tmp_path / "cuda-13.0")
    wrapper = no_nvcc / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
    wrapper.chmod(0o755)
    toolkit = cuda_toolkit.find_toolkit()
    assert toolkit is not None
    assert toolkit.nvcc == str(wrapper)
    assert toolkit.version == "13.0.88"
    assert toolkit.include_dirs == (str(tmp_path / "cuda-13.0/targets/x86_64-linux/include"),)
    assert toolkit.library_dirs == (str(tmp_path / "cuda-13.0/targets/x86_64-linux/lib"),)


def test_the_wheels_whose_nvcc_names_a_folder_that_is_not_there(no_nvcc: Path, tmp_path: Path) -> None:
    top = tmp_path / "site-packages" / "nvidia" / "cu13"
    make_toolkit(top, target="", size="64")  # it says lib64, the wheels have lib
    toolkit = cuda_toolkit.find_toolkit()
    assert toolkit is not None
    assert toolkit.library_dirs == (str(top / "lib"),)


def test_cuda_home_comes_first_and_a_broken_nvcc_is_passed_over(
    no_nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = make_toolkit(tmp_path / "on-path")
    (no_nvcc / "nvcc").symlink_to(on_path)
    mine = make_toolkit(tmp_path / "mine")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "mine"))
    toolkit = cuda_toolkit.find_toolkit()
    assert toolkit is not None
    assert toolkit.nvcc == str(mine)
    mine.write_text("#!/bin/sh\nexit 1\n")
    toolkit = cuda_toolkit.find_toolkit()
    assert toolkit is not None
    assert toolkit.nvcc == str(no_nvcc / "nvcc")


def test_architectures(no_nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    make_toolkit(tmp_path / "cuda", codes="sm_100\\n")
    toolkit = cuda_toolkit.find_toolkit()
    assert toolkit is not None
    assert cuda_toolkit.architectures(toolkit) == ["80", "90", "100"]  # this one is too old for sm_120
    command = cuda_toolkit.compile_command(toolkit, "a.cu", "a.o", ["csrc"], threads=2)
    assert "-gencode=arch=compute_90,code=sm_90" in command
    assert command.count("-gencode=arch=compute_100,code=compute_100") == 1  # PTX of the last
    assert "-fmad=false" in command
    monkeypatch.setenv("FEDSYNSAM_CUDA_ARCHS", "sm_90")
    assert cuda_toolkit.architectures(toolkit) == ["90"]
    monkeypatch.setenv("FEDSYNSAM_CUDA_ARCHS", "80,42")
    with pytest.raises(SystemExit, match=r"cannot compile \['42'\]; it knows 80, 90, 100"):
        cuda_toolkit.architectures(toolkit)


@pytest.mark.parametrize(("mode", "wanted"), [("auto", False), ("0", False), ("1", True)])
def test_the_wheels_are_asked_for_only_when_needed(
    mode: str, wanted: bool, no_nvcc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSYNSAM_CUDA", mode)
    asked = [name for name in build_backend._cuda_wheels() if name.startswith("nvidia-")]
    assert len(asked) == (5 if wanted else 0)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    make_toolkit(tmp_path / "cuda")
    assert build_backend._cuda_wheels() == []


def test_an_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSYNSAM_CUDA", "yes")
    with pytest.raises(SystemExit, match="use auto, 1 or 0"):
        cuda_toolkit.cuda_mode()
