"""The docs say what the code does. `python -m tests.unit.test_docs` rewrites the settings table."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic_core import PydanticUndefined

from settee.base import errors
from settee.base.errors import SetteeError
from settee.base.settings import SECRETS, Settings
from settee.engine import request
from tests.support import real_jobs

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "settings.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def _default(name: str) -> str:
    if name == "workspace_dir":
        return "`/dev/shm/settee`"
    value = Settings.model_fields[name].default
    assert value is not PydanticUndefined
    if value is None or value == () or value == "":
        return "–"
    if isinstance(value, tuple):
        value = ",".join(value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:_}`" if isinstance(value, int) and value >= 100_000 else f"`{value}`"


def table() -> str:
    lines = ["| variable | default | what it does |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        secret = " Secret; also from `" + name.upper() + "_FILE`." if name in SECRETS else ""
        lines.append(f"| `{name.upper()}` | {_default(name)} | {field.description}{secret} |")
    return "\n".join(lines)


def test_every_output_class_of_comfyui_is_documented() -> None:
    assert real_jobs.table() in (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def test_every_setting_is_documented() -> None:
    text = TABLE.read_text(encoding="utf-8")
    written = text.split(BEGIN)[1].split(END)[0].strip()
    assert written == table(), "run: python -m tests.unit.test_docs"


def _all_errors(base: type[SetteeError] = SetteeError) -> list[type[SetteeError]]:
    found = [base]
    for child in base.__subclasses__():
        found += _all_errors(child)
    return [error for error in found if error.__module__ == errors.__name__]


def test_every_error_code_is_documented_and_drawn() -> None:
    api = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    drawn = errors.__doc__ or ""
    for error in _all_errors():
        assert f"`{error.code}`" in api, error.code
        assert error.__name__ in drawn, error.__name__


def test_every_field_of_a_request_is_documented() -> None:
    api = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for key in request.KEYS:
        assert f"`{key}`" in api, key
    for name in request.Delivery.model_fields:
        assert f"`{name}`" in api, name


def test_the_readme_names_only_files_that_are_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([\w./-]+?)(?:#[\w-]+)?\)", text):
        assert (ROOT / target).exists(), target


def test_ports_are_published_on_this_machine_alone() -> None:
    """Neither the API nor the editor asks for a password."""
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        commands = re.findall(r"^docker run (?:.*\\\n)*.*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        for port in re.findall(r"-p (\S+)", " ".join(commands)):
            assert port.startswith("127.0.0.1:"), f"{path.name}: {port}"


def test_the_architecture_names_every_folder_of_the_package_once_and_nothing_else() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = [ROOT / name for cell in re.findall(r"^\| (`settee[^|]+) \|", text, re.M) for name in cell.split("`")[1::2]]
    nodes = ROOT / "settee" / "comfy_nodes"
    folders = {path.parent for path in (ROOT / "settee").rglob("*.py") if nodes not in path.parents} | {nodes}
    assert sorted(named) == sorted(folders - {ROOT / "settee"})
    for name in re.findall(r"`([\w./-]+/[\w./-]*|\w+\.(?:py|sh|hcl))`", text):
        assert (ROOT / name).exists(), name


def test_the_changelog_has_the_version() -> None:
    import settee

    assert f"## {settee.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    before, _, rest = TABLE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    TABLE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
