"""A network volume for measurements: one folder served over FUSE, with a volume's latency and bandwidth.

    with SlowVolume({"model.safetensors": path}, latency_s=0.002, bytes_per_s=1e9) as folder:
        ...  # folder / "model.safetensors" is read as slowly as from a volume, and cached by the kernel as from one

The kernel does the rest as it does for a real volume mounted over FUSE (MooseFS, s3fs): pages are cached, read-ahead
is 128 KiB, and at most 12 requests of read-ahead are under way. It speaks the kernel's protocol itself, so that it
needs no library, but root and /dev/fuse. The server is a process of its own: a reader that faults pages in while
it holds its interpreter's lock must not wait for a server that needs the same lock.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, INIT, OPENDIR, BATCH_FORGET = 1, 2, 3, 14, 15, 17, 26, 27, 42
WITHOUT_ANSWER = (FORGET, BATCH_FORGET)
ASYNC_READ = 1
ROOT = 1
WORKERS = 24
CLONE_NEWNS, MS_REC, MS_PRIVATE, MNT_DETACH = 0x20000, 0x4000, 0x40000, 2

_libc = ctypes.CDLL(None, use_errno=True)


class Unavailable(Exception):
    """There is no slow volume here; the message says why."""


def _checked(result: int, what: str) -> None:
    if result != 0:
        raise Unavailable(f"{what}: {os.strerror(ctypes.get_errno())}")


def own_mounts() -> None:
    """Give this process mounts of its own, which end with it. Call it before any thread is started."""
    _checked(_libc.unshare(CLONE_NEWNS), "a mount namespace needs root")
    _checked(_libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "private mounts")


class _Server:
    """Answers the kernel's requests (linux/fuse.h, protocol 7.31) for read-only files in one folder."""

    def __init__(self, fuse: int, files: dict[str, Path], latency_s: float, bytes_per_s: float) -> None:
        self.fuse, self.latency_s, self.bytes_per_s = fuse, latency_s, bytes_per_s
        self.names = {name.encode(): ROOT + 1 + index for index, name in enumerate(files)}
        self.maps: dict[int, mmap.mmap] = {}
        for index, path in enumerate(files.values()):
            with open(path, "rb") as file:
                self.maps[ROOT + 1 + index] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.lock = threading.Lock()
        self.line_free_at = 0.0

    def serve(self) -> None:
        """One of several threads: until the volume is unmounted."""
        while True:
            try:
                request = os.read(self.fuse, 256 * 1024)
            except InterruptedError:
                continue
            except OSError as error:
                if error.errno == errno.ENOENT:  # the request was taken back before it was read
                    continue
                return  # ENODEV: unmounted
            _, opcode, unique, node = struct.unpack_from("<IIQQ", request)
            if opcode in WITHOUT_ANSWER:
                continue
            answer = self.answer(opcode, node, request[40:])
            code, body = (-answer, b"") if isinstance(answer, int) else (0, answer)
            try:
                os.writev(self.fuse, [struct.pack("<IiQ", 16 + len(body), code, unique), body])
            except OSError:  # the asker was killed meanwhile
                continue

    def answer(self, opcode: int, node: int, body: bytes) -> bytes | memoryview | int:
        """The answer's body, or an error number."""
        if opcode == INIT:
            _, minor, readahead, flags = struct.unpack_from("<IIII", body)
            out = struct.pack("<IIIIHHIIHHI", 7, min(minor, 31), readahead, flags & ASYNC_READ, 0, 0, 4096, 1, 0, 0, 0)
            return out + bytes(64 - len(out))
        if opcode == LOOKUP:
            found = self.names.get(body.rstrip(b"\0"))
            return (
                struct.pack("<QQQQII", found, 0, 3600, 3600, 0, 0) + self.attributes(found) if found else errno.ENOENT
            )
        if opcode == GETATTR:
            return struct.pack("<QII", 3600, 0, 0) + self.attributes(node)
        if opcode in (OPEN, OPENDIR):
            return struct.pack("<QII", 0, 2, 0)  # 2: keep the pages that are cached
        if opcode == READ:
            _, offset, size = struct.unpack_from("<QQI", body)
            piece = memoryview(self.maps[node])[offset : offset + size]
            self.travel(len(piece))
            return piece
        if opcode == STATFS:
            return struct.pack("<QQQQQIIII", 0, 0, 0, 0, 0, 4096, 255, 4096, 0) + bytes(24)
        return errno.ENOSYS

    def attributes(self, node: int) -> bytes:
        size = 0 if node == ROOT else len(self.maps[node])
        mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | 0o644
        return struct.pack(
            "<QQQQQQIIIIIIIIII", node, size, (size + 511) // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0
        )

    def travel(self, size: int) -> None:
        """Wait as long as these bytes take: the way there and back, and their turn on a line that all share."""
        with self.lock:
            now = time.monotonic()
            self.line_free_at = max(now, self.line_free_at) + size / self.bytes_per_s
            wait = max(self.latency_s, self.line_free_at - now)
        time.sleep(wait)


class SlowVolume:
    """A context manager whose value is the mounted folder. Raises Unavailable with the reason."""

    def __init__(self, files: dict[str, Path], *, latency_s: float, bytes_per_s: float) -> None:
        self.files, self.latency_s, self.bytes_per_s = files, latency_s, bytes_per_s

    def __enter__(self) -> Path:
        self.folder = Path(tempfile.mkdtemp(prefix="slow-volume-"))
        files = [f"{name}={path}" for name, path in self.files.items()]
        command = [sys.executable, "-m", "bench.slow_volume", str(self.folder)]
        self.server = subprocess.Popen(
            [*command, str(self.latency_s), str(self.bytes_per_s), *files], stdout=subprocess.PIPE, text=True
        )
        assert self.server.stdout is not None
        answer = self.server.stdout.readline().strip()
        if answer != "mounted":
            self.server.wait(10)
            self.folder.rmdir()
            raise Unavailable(answer or "the volume's server died")
        return self.folder

    def __exit__(self, *_: object) -> None:
        _libc.umount2(os.fsencode(self.folder), MNT_DETACH)
        self.server.send_signal(signal.SIGKILL)
        self.server.wait(10)
        assert self.server.stdout is not None
        self.server.stdout.close()
        self.folder.rmdir()


def main(folder: str, latency_s: str, bytes_per_s: str, *files: str) -> None:
    paths = {name: Path(path) for name, _, path in (file.partition("=") for file in files)}
    try:
        fuse = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        print(f"/dev/fuse: {error.strerror}", flush=True)
        return
    options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    try:
        _checked(_libc.mount(b"slow-volume", os.fsencode(folder), b"fuse", 0, options), "mount")
    except Unavailable as error:
        print(error, flush=True)
        return
    server = _Server(fuse, paths, float(latency_s), float(bytes_per_s))
    workers = [threading.Thread(target=server.serve) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    print("mounted", flush=True)
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main(*sys.argv[1:])
