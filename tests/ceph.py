"""Ceph's gateway on this machine, from Debian's packages: one monitor, one manager, one store of objects."""

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.object_store import ACCESS_KEY, SECRET_KEY, free_ports

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mgr", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
PACKAGES = "ceph-mgr ceph-mon ceph-osd radosgw"
CONFIG = """
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{monitor}
ms_bind_msgr1 = false
public_network = 127.0.0.0/8
auth_allow_insecure_global_id_reclaim = false
keyring = {folder}/keyring
osd_pool_default_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
run_dir = {folder}/run
crash_dir = {folder}/log
admin_socket = {folder}/run/$name.sock
pid_file = {folder}/run/$name.pid
log_file = {folder}/log/$name.log
mon_data = {folder}/mon
mgr_data = {folder}/mgr
osd_data = {folder}/osd
bluestore_block_path =
bluestore_block_size = 4294967296
osd_memory_target = 939524096
rgw_frontends = beast endpoint=127.0.0.1:{port}
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def running_ceph(folder: Path) -> Iterator[str]:
    """The gateway's address until the block ends. The folder's name has to be short: sockets lie in it."""
    port, monitor = free_ports(2)
    for name in ("mon", "mgr", "osd", "run", "log"):
        (folder / name).mkdir()
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    (folder / "ceph.conf").write_text(CONFIG.format(fsid=fsid, folder=folder, port=port, monitor=monitor))
    _make_keys(folder)
    _run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{monitor}]", f"{folder}/monmap")
    with _Daemons(folder) as daemons:
        _ceph(folder, "ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{folder}/monmap", "--keyring", f"{folder}/keyring")
        daemons.start("ceph-mon", "-i", "a")
        daemons.start("ceph-mgr", "-i", "x")
        _ceph(folder, "ceph", "osd", "new", osd)
        (folder / "osd" / "type").write_text("bluestore\n")
        _ceph(folder, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        daemons.start("ceph-osd", "-i", "0")
        daemons.start("radosgw", "-n", "client.rgw")
        _wait(port)
        keys = (f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
        _ceph(folder, "radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests", *keys)
        yield f"http://127.0.0.1:{port}"


class _Daemons:
    """What was started, to be ended in the reverse order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, program: str, *arguments: str) -> None:
        with (self.folder / "log" / f"{program}.out").open("ab") as log:
            command = [program, "-f", "-c", f"{self.folder}/ceph.conf", *arguments]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log))

    def __enter__(self) -> "_Daemons":
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


def _make_keys(folder: Path) -> None:
    keyring, everything = f"{folder}/keyring", ("allow *",)
    _run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", *everything)
    for name in ("client.admin", "osd.0", "mgr.x", "client.rgw"):
        rights = [word for what in ("mon", "osd", "mgr") for word in ("--cap", what, *everything)]
        _run("ceph-authtool", keyring, "--gen-key", "-n", name, *rights)


def _ceph(folder: Path, program: str, *arguments: str) -> None:
    _run(program, "-c", f"{folder}/ceph.conf", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=os.environ)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[-1000:]}"


def _wait(port: int) -> None:
    """Until the gateway has made its pools and listens."""
    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, "the gateway does not answer"
        time.sleep(0.2)
