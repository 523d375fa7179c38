"""`python -m tests.support.stub_worker`: rp_handler.py's worker on the stub engine."""

from typing import Any

from settee.doors.runpod.worker import main
from settee.engine import engine
from tests.support.stub_engine import StubEngine

if __name__ == "__main__":
    stub: Any = StubEngine
    engine.Engine = stub
    main()
