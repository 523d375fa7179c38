"""`make demo`, once Python and the packages are there: the pictures are the right ones, and nothing stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageChops

from settee.base.sealing import generate_key
from tools import demo

EXAMPLE = demo.ROOT / "workflows" / "example.png"


def test_the_demo_writes_correct_pictures_whatever_the_shell_has_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMFY_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("REQUIRE_ENCRYPTION", "true")
    monkeypatch.setenv("ENCRYPTION_KEY", generate_key())
    assert demo.main(["--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert all(path.name in shown for path in (demo.ROOT / "workflows").glob("*.json"))
    [inverted] = tmp_path.glob("invert*.png")
    with Image.open(EXAMPLE) as before, Image.open(inverted) as after:
        difference = ImageChops.difference(ImageChops.invert(before.convert("RGB")), after.convert("RGB"))
    assert max(high for _, high in difference.getextrema()) <= 1  # type: ignore[union-attr]
    [moving] = tmp_path.glob("*.webp")
    with Image.open(moving) as animation:
        assert animation.n_frames == 2


def test_without_workflows_the_demo_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match="no workflows"):
        demo.main(["--out", str(tmp_path)])
