"""Clients' records: the same numbers wherever they lie, as many as clients took part, and found again after a crash."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from fedsynsam.errors import CheckpointError, ConfigError
from fedsynsam.fl import records
from fedsynsam.fl.config import RunConfig
from fedsynsam.fl.distributed import Group
from fedsynsam.fl.records import Records, RecordStore, choose_place, record_bytes, record_note
from fedsynsam.fl.simulation import Simulation
from fedsynsam.fl.tensorfile import TensorFolder, pack, unpack

from .test_ranks import assert_same_run, files

CPU = torch.device("cpu")


@pytest.mark.parametrize("store", ["auto", "device", "disk"])
def test_the_place_changes_no_number(tiny_config: RunConfig, tmp_path, store) -> None:
    Simulation(tiny_config.replace(residual_store="host"), tmp_path / "host").run()
    Simulation(tiny_config.replace(residual_store=store), tmp_path / store).run()
    assert_same_run(tmp_path / "host", tmp_path / store)


def test_a_run_goes_on_with_another_store(tiny_config: RunConfig, tmp_path) -> None:
    class Stop(Exception):
        pass

    def stop_at(number: int):
        def on_round(row) -> None:
            if row.round == number:
                raise Stop

        return on_round

    Simulation(tiny_config, tmp_path / "whole").run()
    with pytest.raises(Stop):
        Simulation(tiny_config.replace(residual_store="disk"), tmp_path / "run").run(stop_at(3))
    with pytest.raises(Stop):
        Simulation(tiny_config.replace(residual_store="host"), tmp_path / "run", resume=True).run(stop_at(5))
    Simulation(tiny_config.replace(residual_store="disk"), tmp_path / "run", resume=True).run()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("place", ["host", "disk"])
def test_what_is_kept_follows_the_law(tmp_path: Path, place) -> None:
    """One residual a client that took part, and on disk one more where the checkpoint has an older one."""
    like, folder = torch.zeros(50), TensorFolder(tmp_path)
    kept = Records(RecordStore(place, ("residual", "dual"), like, folder), like, Group())
    assert torch.equal(kept.get(3)["residual"], like)
    generator = torch.Generator().manual_seed(0)
    for number in range(1, 9):
        cohort = [number % 3, 5]
        assert kept.place(cohort) == cohort
        left = {c: {name: torch.randn(50, generator=generator) for name in ("residual", "dual")} for c in cohort}
        times = [kept.times(c) for c in cohort]
        kept.keep(cohort, left, number)
        assert all(torch.equal(kept.get(c)[name], left[c][name]) for c in cohort for name in left[c])
        assert [kept.times(c) for c in cohort] == [before + 1 for before in times]
        if number == 4:
            folder.sync(kept.write_changed(folder))
            kept.checkpointed(folder)
    names = {path.stem for path in tmp_path.iterdir()}
    saved = {"client-0-round-3", "client-1-round-4", "client-2-round-2", "client-5-round-4"}
    latest = {"client-0-round-6", "client-1-round-7", "client-2-round-8", "client-5-round-8"}
    assert names == (saved | latest if place == "disk" else saved)
    assert len(kept.store._held) == (0 if place == "disk" else 4)
    kept.write_changed(folder)
    kept.checkpointed(folder)
    assert {path.stem for path in tmp_path.iterdir()} == latest
    assert not kept.changed


def test_a_row_of_a_matrix_does_not_keep_the_matrix() -> None:
    store = RecordStore("host", ("residual",), torch.zeros(8), None)
    matrix = torch.arange(80.0).view(10, 8)
    store.put(0, 1, {"residual": matrix[3]}, None)
    assert torch.equal(store.get(0, 1)["residual"], matrix[3])
    assert store.get(0, 1)["residual"].untyped_storage().nbytes() == 4 * 8


def test_clients_that_never_took_part_take_nothing(tiny_config: RunConfig, tmp_path) -> None:
    config = tiny_config.replace(clients=48, participation=1 / 48, alpha=100.0, rounds=4, residual_store="disk")
    Simulation(config, tmp_path / "run").run()
    assert sum(name.startswith("client") for name in files(tmp_path / "run")) <= 4
    Simulation(config.replace(compressor="quantize:4"), tmp_path / "none").run()
    assert list(files(tmp_path / "none")) == ["state.safetensors"], "no residual, no file"


def test_records_on_disk_go_with_a_run_that_keeps_no_checkpoint(tiny_config: RunConfig, tmp_path) -> None:
    config = tiny_config.replace(residual_store="disk", checkpoint_every=0)
    seen: list[bool] = []
    run = Simulation(config, tmp_path / "run")
    run.run(lambda row: seen.append(any(name.startswith("client") for name in files(tmp_path / "run"))))
    assert all(seen)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_the_law_is_printed(tiny_config: RunConfig) -> None:
    notes: list[str] = []
    Simulation(tiny_config).run(on_note=notes.append)
    law = "residuals: 6 clients x 4,355 values x 4 bytes = at most 0.1 MB, in host memory"
    assert notes == ["engine: sequential", law]
    Simulation(tiny_config.replace(compressor="none")).run(on_note=notes.append)
    assert len(notes) == 3, "nothing to say where there are no residuals"
    big = RunConfig(clients=10_000, participation=0.001, rounds=5_000)
    assert record_bytes(big, 37_610, 1) == 10_000 * 37_610 * 4 < 24 * 2**30 / 10
    assert record_bytes(big.replace(rounds=3), 37_610, 1) == 30 * 37_610 * 4, "no more than ever take part"
    assert "10,000 clients x 37,610 values x 4 bytes = at most 1,504.4 MB" in record_note(
        big, 37_610, ("residual",), "host"
    )


def test_auto_takes_what_fits(tiny_config: RunConfig, monkeypatch) -> None:
    need = record_bytes(tiny_config, 1000, 1)

    def place(free: float, on_disk: bool = True, group: Group | None = None) -> str:
        monkeypatch.setattr(records, "available_memory", lambda: int(free))
        return choose_place(tiny_config, need, CPU, group or Group(), on_disk)

    assert place(2 * need) == "host"
    assert place(2 * need - 1) == "disk"
    assert place(2 * need - 1, on_disk=False) == "host"
    two_machines = Group()
    two_machines.size = 2
    assert place(need, group=two_machines) == "host", "each machine has half of them"
    assert choose_place(tiny_config.replace(residual_store="device"), need, CPU, Group(), True) == "host"
    monkeypatch.undo()
    assert 2**20 < records.available_memory() < 2**50


def test_a_store_on_disk_needs_a_folder(tiny_config: RunConfig) -> None:
    with pytest.raises(ConfigError, match="residual_store: 'disk' needs the folder"):
        Simulation(tiny_config.replace(residual_store="disk"))
    with pytest.raises(ConfigError, match="residual_store: unknown value 'tape'"):
        tiny_config.replace(residual_store="tape")


def test_a_residual_of_another_size_is_refused(tmp_path: Path) -> None:
    folder = TensorFolder(tmp_path)
    folder.write("client-1-round-2", pack({"residual": torch.zeros(7)}))
    store = RecordStore("disk", ("residual",), torch.zeros(8), folder)
    with pytest.raises(
        CheckpointError, match=r"client-1-round-2.safetensors does not hold 8 values for each of residual"
    ):
        store.get(1, 2)
    store.saved[1] = 2
    with pytest.raises(CheckpointError, match=r"client-1-round-2.safetensors is damaged"):
        store.check_saved()


def test_tensor_files_are_checked_and_reproducible() -> None:
    shared = torch.arange(6.0)
    tensors = {"a": shared, "b": shared.view(2, 3).t(), "c": torch.tensor([[1, 2]]), "d": torch.zeros(0)}
    blob = pack(tensors, {"x": 0.1, "y": [1, 2]})
    assert blob == pack(dict(reversed(tensors.items())), {"x": 0.1, "y": [1, 2]})
    found, numbers = unpack(blob, "it", CPU)
    assert numbers == {"x": 0.1, "y": [1, 2]}
    assert {key: value.tolist() for key, value in found.items()} == {k: v.tolist() for k, v in tensors.items()}
    for place in range(len(blob)):
        for damaged in (blob[:place], blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]):
            try:
                again, numbers_again = unpack(damaged, "it", CPU)
            except CheckpointError as error:
                assert str(error).startswith("it ")  # noqa: PT017
            else:  # a change that means nothing
                assert numbers_again == numbers
                assert {key: value.tolist() for key, value in again.items()} == {
                    key: value.tolist() for key, value in tensors.items()
                }
    with pytest.raises(CheckpointError, match="it has version None"):
        unpack(save({"a": torch.zeros(1)}), "it", CPU)
