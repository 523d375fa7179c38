"""`python -m tests.support.stub_worker`: rp_handler.py's worker on the stub engine."""

from settee.doors.runpod.worker import main
from tests.support.stub_engine import StubEngine

if __name__ == "__main__":
    main(StubEngine)
