"""ComfyUI's node registry (/object_info), from a server or from a file that it was saved to."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

from settee.client.errors import NetworkError, UsageError
from settee.workflow import ObjectInfo

#: Of one read.
_TIMEOUT_S = 30.0
#: A ComfyUI with hundreds of custom nodes has some 20 MB.
_MOST_BYTES = 200_000_000


def read(where: str | PathLike[str]) -> ObjectInfo:
    """Raises NetworkError for a server that does not answer, UsageError for what is no registry."""
    text = str(where)
    data = _asked(text.rstrip("/")) if text.startswith(("http://", "https://")) else _from_file(Path(text))
    is_one = isinstance(data, dict) and data and all(isinstance(v, dict) and "input" in v for v in data.values())
    if not is_one:
        raise UsageError(f"--registry {text}: that is no node registry: name a ComfyUI, or its saved /object_info")
    return dict(data)


def _from_file(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--registry {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--registry {path}: it is not JSON") from error


def _asked(url: str) -> Any:
    import requests

    address = url if url.endswith("/object_info") else f"{url}/object_info"
    try:
        with requests.get(address, timeout=_TIMEOUT_S, stream=True) as response:
            response.raise_for_status()
            content = bytearray()
            for piece in response.iter_content(1 << 20):
                content += piece
                if len(content) > _MOST_BYTES:
                    raise UsageError(f"--registry {url}: the answer is larger than any node registry")
    except requests.RequestException as error:
        raise NetworkError(
            f"--registry {url}: no answer ({type(error).__name__}): is a ComfyUI running there?"
        ) from error
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--registry {url}: the answer is not JSON: is it a ComfyUI?") from error
