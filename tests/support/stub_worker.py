"""`python -m tests.support.stub_worker`: rp_handler.py's worker on the stub engine."""

from typing import Any

from settee.doors.runpod import worker
from tests.support.stub_engine import StubEngine

if __name__ == "__main__":
    make: Any = StubEngine
    worker._engine = make
    worker.main()
