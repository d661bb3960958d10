"""Checkpoint folders: what is kept, what is found, what is refused. The engine is the real one, the network tiny."""

import dataclasses
import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from aura.config import Config, LoraSettings, ModelSettings, TrainSettings
from aura.train.checkpoint import (
    Checkpoints,
    export,
    identity,
    read_continuable,
    read_own_state,
    read_state,
    superfluous,
)
from aura.train.engine import Engine, start_process
from aura.train.export import choose_checkpoint
from aura.types import Sample

SETTINGS = TrainSettings(steps=50, warmup_steps=2, accumulation=1, precision="fp32", zero_stage=0)
CONFIG = Config(train=SETTINGS)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.trained, self.frozen = nn.Linear(2, 1), nn.Linear(2, 1).requires_grad_(False)

    def forward(self, x):
        return self.trained(x) + self.frozen(x)

    def save_pretrained(self, folder, state_dict, max_shard_size):
        Path(folder).mkdir(exist_ok=True)
        torch.save(state_dict, f"{folder}/weights.pt")


class Processor:
    def save_pretrained(self, folder):
        (Path(folder) / "p.json").touch()


@pytest.fixture(scope="module")
def process():
    return start_process(SETTINGS)


@pytest.fixture
def engine(process):
    return Engine(Network(), SETTINGS, process)


@pytest.fixture
def checkpoints(tmp_path, process):
    return Checkpoints(tmp_path, 2, process)


def step(engine):
    engine.backward(engine(torch.randn(4, 2)).square().mean())
    engine.step()


def save(checkpoints, engine, best=None):
    state = {"identity": identity(CONFIG, checkpoints.process, [], engine.module), "best": best}
    return checkpoints.save(engine, state, {"numbers": [1, 2], "tensor": torch.ones(2)})


def test_last_k_and_best_are_kept():
    assert superfluous([100, 200, 300, 400], 2, None) == [100, 200]
    assert superfluous([100, 200, 300, 400], 2, 100) == [200]
    assert superfluous([400, 100, 300, 200], 2, 400) == [100, 200]
    assert superfluous([100], 2, None) == []


def test_saving_keeps_points_and_prunes(checkpoints, engine):
    for number in range(1, 6):
        step(engine)
        save(checkpoints, engine, best={"step": 2, "score": 0.5} if number >= 2 else None)
    assert checkpoints.steps() == [2, 4, 5]
    assert checkpoints.find("auto") == checkpoints.path(5)
    assert read_own_state(checkpoints.path(5), checkpoints.process)["numbers"] == [1, 2]
    assert read_state(checkpoints.path(5))["step"] == 5


def test_nothing_to_continue(checkpoints):
    assert checkpoints.find("auto") is None
    assert checkpoints.find("none") is None


def test_none_refuses_a_folder_with_checkpoints(checkpoints, engine):
    step(engine)
    save(checkpoints, engine)
    with pytest.raises(ValueError, match=r"--train.resume auto"):
        checkpoints.find("none")


def test_path_may_be_a_checkpoint_or_a_run_folder(checkpoints, engine, tmp_path):
    step(engine)
    saved = save(checkpoints, engine)
    assert checkpoints.find(str(saved)) == saved
    assert checkpoints.find(str(tmp_path)) == saved
    with pytest.raises(ValueError, match=r"neither a checkpoint"):
        checkpoints.find(str(tmp_path / "elsewhere"))


def test_unfinished_checkpoint_is_invisible_and_cleared(checkpoints, engine, monkeypatch):
    step(engine)
    save(checkpoints, engine)
    step(engine)
    with monkeypatch.context() as patch:  # a kill in the middle of writing
        patch.setattr("aura.train.checkpoint.write_json", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, engine)
    assert checkpoints.steps() == [1]
    assert checkpoints.find("auto") == checkpoints.path(1)
    save(checkpoints, engine)
    assert checkpoints.steps() == [1, 2]
    assert not list(checkpoints.folder.glob(".*unfinished"))


@pytest.mark.parametrize("limit", [0, 1500])
def test_a_full_disk_leaves_the_good_checkpoint_and_nothing_half_written(checkpoints, engine, limit):
    step(engine)
    save(checkpoints, engine)
    step(engine)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # every file is cut off there, as on a full disk
    try:
        with pytest.raises(ValueError, match=r"checkpoint of step 2 .* MiB .*continues from step_000001$"):
            save(checkpoints, engine)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["latest", "step_000001"]
    save(checkpoints, engine)
    assert checkpoints.steps() == [1, 2]


def test_lost_pointer_falls_back_to_the_newest(checkpoints, engine):
    for _ in range(2):
        step(engine)
        save(checkpoints, engine)
    (checkpoints.folder / "latest").unlink()
    assert checkpoints.find("auto") == checkpoints.path(2)
    shutil.rmtree(checkpoints.path(2))
    (checkpoints.folder / "latest").write_text("step_000002")
    assert checkpoints.find("auto") == checkpoints.path(1)
    run = checkpoints.folder.parent
    assert checkpoints.find(str(run)) == choose_checkpoint(run, "last").path == checkpoints.path(1)


@pytest.mark.parametrize("pointer", ["../elsewhere/step_000009", "{elsewhere}/step_000009", "..", "", "a\0b", "\udcff"])
def test_a_pointer_that_leads_elsewhere_is_passed_over(checkpoints, engine, tmp_path, pointer):
    step(engine)
    saved = save(checkpoints, engine)
    shutil.copytree(saved, tmp_path / "elsewhere" / "step_000009")
    text = pointer.format(elsewhere=tmp_path / "elsewhere")
    (checkpoints.folder / "latest").write_text(text, errors="surrogateescape")
    assert checkpoints.find("auto") == saved


@pytest.mark.parametrize("files", [{"../p.pt": 3}, {"/etc/hostname": 3}, ["process_0.pt"], None])
def test_a_list_of_files_that_leads_elsewhere_is_refused(checkpoints, engine, files):
    step(engine)
    saved = save(checkpoints, engine)
    state = json.loads((saved / "state.json").read_text())
    (saved / "state.json").write_text(json.dumps({**state, "files": files}))
    with pytest.raises(ValueError, match=r"state\.json has no list of files beside it; .*--train\.resume PATH"):
        read_state(saved)


def test_going_back_forgets_what_came_after(checkpoints, engine):
    for _ in range(2):
        step(engine)
        save(checkpoints, engine)
    assert checkpoints.forget_after(1) == [2]
    assert checkpoints.steps() == [1]
    assert checkpoints.find("auto") == checkpoints.path(1)


@pytest.mark.parametrize("damage", ["cut", "missing", "state"])
def test_damaged_checkpoint_names_the_file(checkpoints, engine, damage):
    step(engine)
    saved = save(checkpoints, engine)
    file = saved / ("state.json" if damage == "state" else "mp_rank_00_model_states.pt")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=rf"{file.name} .*--train.resume PATH"):
        read_state(saved)


@pytest.mark.parametrize(("text", "message"), [("[]", "cannot be read"), ('{"format": 7, "files": {}}', "format 7")])
def test_a_checkpoint_of_another_version_is_explained(checkpoints, engine, text, message):
    step(engine)
    saved = save(checkpoints, engine)
    (saved / "state.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{message}.*--train\.resume PATH"):
        read_state(saved)


def test_a_damaged_random_state_is_named(checkpoints, engine):
    step(engine)
    saved = save(checkpoints, engine)
    (saved / "process_0.pt").write_bytes(bytes((saved / "process_0.pt").stat().st_size))
    with pytest.raises(ValueError, match=r"process_0\.pt is damaged .*--train\.resume PATH"):
        read_own_state(saved, checkpoints.process)


def changed(**settings):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(SETTINGS, **settings))


def test_where_things_lie_may_change(checkpoints, engine):
    step(engine)
    saved = save(checkpoints, engine)
    moved = changed(output_dir="elsewhere", log_every=3, resume=str(saved))
    assert read_continuable(saved, identity(moved, checkpoints.process, [], engine.module))["step"] == 1


def test_a_setting_that_came_later_had_its_default(checkpoints, engine):
    step(engine)
    facts = identity(CONFIG, checkpoints.process, [], engine.module)
    del facts["train.deterministic"]
    saved = checkpoints.save(engine, {"identity": facts, "best": None}, {})
    assert read_continuable(saved, identity(CONFIG, checkpoints.process, [], engine.module))["step"] == 1
    with pytest.raises(ValueError, match=r"train\.deterministic: False -> True"):
        read_continuable(saved, identity(changed(deterministic=True), checkpoints.process, [], engine.module))


def test_the_number_of_processes_may_change_if_a_step_sees_as_many_images(checkpoints, engine):
    step(engine)
    state = {"identity": identity(changed(accumulation=4), checkpoints.process, [], engine.module), "best": None}
    saved = checkpoints.save(engine, state, {})
    two = dataclasses.replace(checkpoints.process, world_size=2)
    assert read_continuable(saved, identity(changed(accumulation=2), two, [], engine.module))["step"] == 1
    with pytest.raises(ValueError, match=r"number of processes: 1 -> 2; .*--train\.accumulation 2\b"):
        read_continuable(saved, identity(changed(accumulation=4), two, [], engine.module))


@pytest.mark.parametrize(
    ("difference", "message"),
    [
        ({"world_size": 2}, "number of processes: 1 -> 2"),
        ({"samples": True}, "training records: 0 images.* -> 1 images"),
        ({"frozen": True}, "frozen weights: digest"),
        ({"lr": 0.5}, r"train\.lr: 0\.001 -> 0\.5"),
        ({"lora": True}, r"model\.lora\.r: 8 -> 4"),
    ],
)
def test_what_matters_may_not(checkpoints, engine, difference, message):
    step(engine)
    saved = save(checkpoints, engine)
    process = dataclasses.replace(checkpoints.process, world_size=difference.get("world_size", 1))
    config = changed(lr=difference.get("lr", SETTINGS.lr))
    if "lora" in difference:
        config = dataclasses.replace(CONFIG, model=ModelSettings(lora=LoraSettings(r=4)))
    samples = [Sample(1, Path("1.jpg"), 2, 2, (), ())] if "samples" in difference else []
    if "frozen" in difference:
        engine.module.frozen.weight.data += 1
    with pytest.raises(ValueError, match=message):
        read_continuable(saved, identity(config, process, samples, engine.module))


def test_trained_weights_are_no_part_of_the_identity(checkpoints, engine):
    before = identity(CONFIG, checkpoints.process, [], engine.module)
    for _ in range(4):
        step(engine)
    assert identity(CONFIG, checkpoints.process, [], engine.module) == before
    assert json.loads(json.dumps(before)) == before


@pytest.mark.parametrize("stage", [0, 2])
def test_export_takes_the_checkpoint_s_weights(tmp_path, process, stage):
    settings = dataclasses.replace(SETTINGS, zero_stage=stage, lr=0.1)
    engine = Engine(Network(), settings, process)
    checkpoints = Checkpoints(tmp_path, 2, process)
    for _ in range(4):
        step(engine)
    saved = save(checkpoints, engine)
    expected = {name: value.clone() for name, value in engine.module.state_dict().items()}
    for _ in range(3):
        step(engine)
    export(engine, Processor(), tmp_path / "export", saved)
    exported = torch.load(tmp_path / "export" / "weights.pt")
    assert exported.keys() == expected.keys()
    assert all(torch.equal(exported[name], expected[name]) for name in expected)
    assert not torch.equal(exported["trained.weight"], engine.module.trained.weight)
    assert (tmp_path / "export" / "p.json").is_file()
