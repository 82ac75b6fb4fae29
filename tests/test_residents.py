"""Which models stay in memory: one, or as many as are allowed and fit by what is measured; the least used go first."""

from __future__ import annotations

import checkpoints
import pytest
import torch

from core import memory, models, placement
from core.deployment import IN_MEMORY, models_in_memory
from core.errors import InputError
from core.models import load_model
from core.progress import SILENT
from core.requests import ModelSpec
from core.residents import Residents

A, B, C = (ModelSpec(name) for name in "abc")
GB = 10**9


class Machine:
    """10 GB of memory; a model takes what its name says, 1.1 times of it while it is loaded."""

    SIZES = {"a": 4 * GB, "b": 3 * GB, "c": 5 * GB}

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}
        self.other = 0
        self.loads: list[str] = []

    def load(self, name, **_):
        machine = self
        assert self.free("cpu") >= self.SIZES[name] * 1.1 or not self.taken
        self.loads.append(name)

        class Model:
            def __init__(self):
                machine.taken[name] = machine.SIZES[name]

            def __del__(self):
                del machine.taken[name]

        return Model()

    def free(self, device):
        return 10 * GB - sum(self.taken.values()) - self.other

    def wanted(self, spec, progress):
        return "cpu", int(self.SIZES[spec.name] * 1.1)

    def residents(self, most):
        return Residents(self.load, most=most, wanted=self.wanted, free=self.free)


def used(residents, *specs):
    for spec in specs:
        residents.bring(spec, SILENT, store=None)
    return "".join(resident.spec.name for resident in residents.all())


def test_one_goes_before_another_comes():
    machine = Machine()
    residents = machine.residents(1)
    assert used(residents, A, A, B, B, A) == "a" and machine.loads == ["a", "b", "a"]
    residents.drop()
    assert residents.all() == () and machine.taken == {}


def test_more_stay_while_they_fit_and_the_least_recently_used_goes_first():
    machine = Machine()
    residents = machine.residents(3)
    assert used(residents, A, B) == "ba"  # 7 of 10 GB
    assert used(residents, A) == "ab"
    assert used(residents, C) == "ca", "5.5 GB are wanted: b was used before a"
    assert used(residents, A, B) == "ba" and machine.loads == ["a", "b", "c", "b"]
    residents.drop(A)
    assert list(machine.taken) == ["b"]


def test_no_more_stay_than_are_allowed():
    machine = Machine()
    assert used(machine.residents(2), A, B, C) == "cb"
    machine.SIZES = {"a": 1, "b": 1, "c": 1}
    assert used(machine.residents(2), A, B, C) == "cb"


def test_others_go_when_memory_runs_short_and_who_is_paused_stays():
    machine = Machine()
    residents = machine.residents(3)
    used(residents, A, B)
    machine.other = int(2.8 * GB)
    assert used(residents, B) == "b", "0.2 GB are left, and working with b wants 0.33"
    machine.other = 0
    assert used(residents, A) == "ab"
    machine.other = int(2.8 * GB)
    residents.bring(B, SILENT, keep=A, store=None)
    assert {resident.spec for resident in residents.all()} == {A, B}


def test_the_setting_is_a_whole_number_from_one_on():
    assert models_in_memory({}) == 1 and models_in_memory({IN_MEMORY: " 3 "}) == 3
    for text in ("", "0", "-1", "2.5", "many", "²"):
        with pytest.raises(InputError, match=IN_MEMORY):
            models_in_memory({IN_MEMORY: text})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(checkpoints.save(tmp_path_factory.mktemp("model"), "mixtral", dtype=torch.bfloat16, width=400))


@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"placement": "disk"}], ids=str)
def test_with_as_much_as_a_model_wants_it_is_loaded_as_on_an_empty_machine(folder, monkeypatch, options):
    """The measure of what stays: with exactly so many bytes free the loader chooses what it would choose with all."""
    spec = ModelSpec(folder, device="cpu", **options)
    device, needed = models.wanted(spec)
    assert device == "cpu"
    chosen = []

    def choose(*args, **kwargs):
        chosen.append(placement.choose(*args, **kwargs))
        return chosen[-1]

    monkeypatch.setattr(models, "choose", choose)
    for free in (2**40, needed):
        monkeypatch.setattr(placement, "available_bytes", lambda device, free=free: free)
        load_model(folder, device="cpu", **options)
    if not options:  # and with less it is not
        monkeypatch.setattr(placement, "available_bytes", lambda device: needed - 1)
        load_model(folder, device="cpu")
        assert chosen.pop().dtype == torch.bfloat16
    assert [(c.dtype, c.on_disk) for c in chosen[:1]] == [(c.dtype, c.on_disk) for c in chosen[1:]]


def test_on_a_gpu_its_own_memory_is_measured(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (asked.append(str(device)), (3 * GB, 80 * GB))[1])
    machine = Machine()
    residents = Residents(
        machine.load, most=2, wanted=lambda spec, progress: ("cuda", 4 * GB), free=memory.available_bytes
    )
    assert used(residents, A, B) == "b" and asked == ["cuda"]
