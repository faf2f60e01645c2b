"""Clips from folders of frames and from video files: times, windows, order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from vistrain import config, run
from vistrain.data import ClipFolder
from vistrain.data.classification.clips import FrameFolder, VideoFile, central_window, find_clips
from vistrain.errors import ConfigError, DataError


def frames(folder: Path, count: int, height: int = 24, width: int = 32, start: int = 1) -> None:
    """Frame i is of the grey 10 i."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (width, height), (10 * i,) * 3).save(folder / f"frame{i + start}.png")


def film(path: Path, count: int, height: int = 32, width: int = 48) -> bool:
    """The same as a file; False where OpenCV cannot write one."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (width, height))
    for i in range(count):
        writer.write(np.full((height, width, 3), 10 * i, np.uint8))
    writer.release()
    return path.is_file() and path.stat().st_size > 0


def data(root: Path, **more: Any) -> ClipFolder:
    small: dict[str, Any] = {"frames": 4, "step": 2, "image_size": (16, 24), "workers": 0, "batch_size": 2}
    return ClipFolder(root=str(root), **(small | more))


def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    frames(tmp_path / "a", 12)
    (clip,) = find_clips(tmp_path)
    assert isinstance(clip, FrameFolder)
    assert [frame[0, 0, 0] for frame in clip.read(range(12))] == [10 * i for i in range(12)]


def test_a_file_is_read_as_its_frames_are(tmp_path: Path) -> None:
    if not film(tmp_path / "a.avi", 9):
        pytest.skip("this OpenCV writes no AVI files")
    (clip,) = find_clips(tmp_path)
    assert isinstance(clip, VideoFile)
    assert len(clip) == 9
    found = clip.read([0, 3, 8])
    assert [frame.shape for frame in found] == [(32, 48, 3)] * 3
    assert [float(frame.mean()) for frame in found] == pytest.approx([0, 30, 80], abs=4)
    sample = data(tmp_path, val=".", frames=4, step=2).dataset("val").sample(0)
    assert sample.image.shape == (4, 16, 24, 3)
    assert [float(frame.mean()) for frame in sample.image] == pytest.approx([10, 30, 50, 70], abs=4)  # the middle


def test_training_clips_follow_their_seed(tmp_path: Path) -> None:
    for name in "abcd":
        frames(tmp_path / name, 12)
    found = data(tmp_path, holdout=0.25, flip=0.5)
    samples = found.dataset("train")
    assert (len(samples), len(found.dataset("val"))) == (3, 1)
    starts = set()
    for seed in range(20):
        clip = samples.sample(1, seed).image
        assert np.array_equal(clip, samples.sample(1, seed).image)
        assert np.ptp(clip.reshape(4, -1), axis=1).max() == 0  # all of a frame is of one grey
        assert (np.diff(clip[:, 0, 0, 0].astype(int)) == 20).all()  # every second frame
        starts.add(int(clip[0, 0, 0, 0]))
    assert min(starts) >= 0
    assert max(starts) <= 50  # (12 - 7) frames of 10
    assert len(starts) > 3
    batch = next(iter(found.val_dataloader()))
    assert batch["image"].shape == (1, 3, 4, 16, 24)
    assert batch["size"].tolist() == [[4, 16, 24]]


def test_windows_lie_in_the_middle() -> None:
    assert central_window(100, 100, 1.5) == (16, 0, 67, 100)
    assert central_window(50, 200, 1.0) == (0, 75, 50, 50)


def test_all_frames_of_a_clip_are_cut_out_alike(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    for i in range(8):
        Image.fromarray(picture).save(tmp_path / "a" / f"{i}.png")
    clip = data(tmp_path, val=".", flip=0.5).dataset("train").sample(0, 5).image
    assert all(np.array_equal(frame, clip[0]) for frame in clip)


def test_what_cannot_be_read_is_refused_in_one_line(tmp_path: Path) -> None:
    frames(tmp_path / "short" / "a", 6)
    with pytest.raises(DataError, match=r"a: is too short: it has 6 frames, a clip of 4, one frame in 2, wants 7"):
        data(tmp_path / "short", val=".").find("train")
    assert len(data(tmp_path / "short", val=".", step=1).clips("train")) == 1
    for name, count in (("a", 6), ("b", 5)):
        frames(tmp_path / "several" / name, count)
    with pytest.raises(DataError, match=r"a: is too short: it has 6 frames, .* wants 7; so are b \(5\) - lower"):
        data(tmp_path / "several", val=".").find("train")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match=r"a.mp4: is no video that can be read - write it as MP4 or AVI"):
        data(tmp_path / "broken", val=".").dataset("val").sample(0)
    report = data(tmp_path / "broken", val=".").check(tmp_path / "look")
    assert not report.ok
    assert "is no video" in next(iter(report.splits["val"].bad_files.values()))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no video - it wants files"):
        data(tmp_path / "empty", val=".").find("train")
    with pytest.raises(DataError, match="no such folder"):
        data(tmp_path / "nowhere").find("train")
    with pytest.raises(DataError, match="has one video, of which none can be held out"):
        data(tmp_path / "short").find("train")
    frames(tmp_path / "mixed" / "a", 4)
    for i in range(5, 9):
        Image.new("RGB", (8, 8)).save(tmp_path / "mixed" / "a" / f"frame{i}.png")
    with pytest.raises(DataError, match="has frames of 8x8 and of 32x24 pixels"):
        data(tmp_path / "mixed", val=".").dataset("val").sample(0)
    for change in ({"frames": 0}, {"scale": (0.0, 1.0)}, {"flip": 2.0}, {"holdout": 1.0}):
        with pytest.raises(ConfigError):
            data(tmp_path, **change)


def test_a_damaged_file_says_where_it_ends(tmp_path: Path) -> None:
    if not film(tmp_path / "a.avi", 12):
        pytest.skip("this OpenCV writes no AVI files")
    with pytest.raises(DataError, match=r"a.avi: ends after 12 frames, and frame 20 is wanted"):
        VideoFile(tmp_path / "a.avi").read([3, 20])


def compose(root: Path, folder: Path, **more: Any) -> dict[str, Any]:
    model = {
        "patch": 8, "dim": 32, "depth": 1, "heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2,
        "masking": {"ratio": 0.5},
    }  # fmt: skip
    small = {"root": str(root), "frames": 4, "step": 1, "image_size": [16, 24], "workers": 0, "batch_size": 2}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, "check_val_every_n_epoch": 1}
    changes = {
        "data": {**small, "holdout": 0.3}, "model": model, "trainer": trainer, "run": {"folder": str(folder)},
        "schedule": {"type": "optim.Constant", "warmup_epochs": 0},
    }  # fmt: skip
    return config.compose(["vistrain:pretrain/custom_clips"], changes=config.merge(changes, more))


def test_a_run_on_clips_leaves_pictures_and_goes_on_exactly(tmp_path: Path) -> None:
    for name in "abcdef":
        frames(tmp_path / "clips" / name, 8)
    start = compose(tmp_path / "clips", tmp_path / "parts")
    assert run.fit(start) == 0
    width, height = Image.open(tmp_path / "parts/eval/epoch_001.png").size
    assert width > height > 16
    more = config.compose([], start=start, changes={"trainer": {"max_epochs": 2}})
    assert run.fit(more, resume=tmp_path / "parts") == 0
    assert run.fit(config.compose([], start=more, changes={"run": {"folder": str(tmp_path / "whole")}})) == 0
    parts, whole = (run.load(tmp_path / name / "last.ckpt")[0].state_dict() for name in ("parts", "whole"))
    assert [name for name in whole if not (parts[name] == whole[name]).all()] == []


def test_clips_and_images_are_not_confused(tmp_path: Path) -> None:
    for name in "ab":
        frames(tmp_path / "clips" / name, 8)
    start = compose(tmp_path / "clips", tmp_path / "run")
    start["data"] = {"type": "data.UnlabelledFolder", "root": str(tmp_path / "clips"), "batch_size": 2}
    with pytest.raises(ConfigError, match=r"data.type: VideoMAE takes clips, which UnlabelledFolder does not give"):
        run.fit(start)
    with pytest.raises(ConfigError, match=r"clips of 3 frames"):
        run.fit(compose(tmp_path / "clips", tmp_path / "run", data={"frames": 3}))
