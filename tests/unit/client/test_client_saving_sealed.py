"""A sealed job's files that come by S3: one token behind each address."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from settee.base import sealing
from settee.client.client_errors import UsageError
from settee.client.job_outputs import outputs_of
from settee.client.saving import Result
from settee.client.sealed_jobs import Sealer
from tests.support.file_server import FileServer


def test_what_a_sealed_job_put_on_s3_is_opened(tmp_path: Path) -> None:
    """Size and hash in the result are those of the file inside the token."""
    key, content = sealing.generate_key(), os.urandom(100_000)
    token = b"".join(sealing.Sealer(key).seal_chunks([content]))
    with FileServer(token).running() as server:
        item = {
            "filename": "a.bin",
            "type": "s3_url",
            "data": f"http://127.0.0.1:{server.port}/0000.sealed?X-Amz-Signature=1",
        }
        known = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        outputs = outputs_of({"files": [{**item, **known}]})
        (saved,) = Result("job", outputs, unseal=Sealer(key).open_file).save(tmp_path / "out")
        assert saved.path.read_bytes() == content
        wrong = Result("job", outputs, unseal=Sealer(sealing.generate_key()).open_file)
        with pytest.raises(UsageError, match="does not open with the key"):
            wrong.save(tmp_path / "other")
        assert not list((tmp_path / "other").iterdir())
