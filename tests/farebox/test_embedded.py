"""The embedded server: started, adopted, killed, restarted; as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from farebox import embedded
from farebox.embedded import EmbeddedPostgres, EmbeddedPostgresError, find_binaries, running

NO_SYNC = {"fsync": "off"}
DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose cluster exists, to be copied: initdb takes a second."""
    path = tmp_path_factory.mktemp("made")
    server = EmbeddedPostgres(path, settings=NO_SYNC)
    server.start()
    server.stop()
    return path


@pytest.fixture
def data_dir(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "data"))


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedPostgres]:
    """A server that is not started yet; durability is Postgres's default."""
    server = EmbeddedPostgres(data_dir)
    yield server
    server.stop()


def query(conninfo: str, statement: str) -> object:
    with psycopg.connect(conninfo, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(pid: int, seconds: float = 20) -> bool:
    """Wait for a process that need not be our child."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


# -- starting and stopping ------------------------------------------------------------------------


def test_a_fresh_directory_gets_a_private_cluster(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "new", settings=NO_SYNC)
    conninfo = server.start()
    try:
        assert query(conninfo, "SHOW listen_addresses") == ""
        assert query(conninfo, "SHOW server_encoding") == "UTF8"
        for private in (tmp_path / "new", server.cluster, server.socket_directory):
            assert private.stat().st_mode & 0o077 == 0
    finally:
        server.stop()
    assert not (server.cluster / "postmaster.pid").exists()


def test_it_stops_and_starts_again(server: EmbeddedPostgres) -> None:
    query(server.start(), "CREATE TABLE kept AS SELECT 1 AS x")
    assert server.alive()
    server.stop()
    assert not server.alive()
    assert query(server.start(), "SELECT x FROM kept") == 1


def test_nothing_weakens_durability(server: EmbeddedPostgres) -> None:
    conninfo = server.start()
    for parameter in ("fsync", "full_page_writes", "synchronous_commit"):
        assert query(conninfo, f"SHOW {parameter}") == "on"


def test_requests_come_before_it(server: EmbeddedPostgres) -> None:
    nice = min(os.getpriority(os.PRIO_PROCESS, 0) + embedded.NICE, 19)  # there is no higher one
    with psycopg.connect(server.start()) as connection:
        assert server.pid is not None
        lasting = {server.pid, connection.info.backend_pid}
        for pid in {*lasting, *children(server.pid)}:
            try:
                assert os.getpriority(os.PRIO_PROCESS, pid) == nice
            except ProcessLookupError:  # it has done its work meanwhile
                assert pid not in lasting


def test_a_long_path_gets_a_short_socket(made: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / ("a long name, with a comma " * 8)
    shutil.copytree(made, data_dir)
    server = EmbeddedPostgres(data_dir, settings=NO_SYNC)
    try:
        assert query(server.start(), "SELECT 1") == 1
        assert len(str(server.socket_directory)) < 60
        assert server.socket_directory.stat().st_mode & 0o777 == 0o700
    finally:
        server.stop()
        shutil.rmtree(server.socket_directory, ignore_errors=True)


def test_a_trap_in_the_temporary_folder_is_not_used(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data_dir = Path(shutil.copytree(made, tmp_path / ("long" * 30)))
    server = EmbeddedPostgres(data_dir)
    server.socket_directory.mkdir(mode=0o755)
    with pytest.raises(EmbeddedPostgresError, match="must be a directory with mode 0700"):
        server.start()


def test_an_interrupted_initdb_is_begun_anew(tmp_path: Path) -> None:
    half = tmp_path / "postgres.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    with running(tmp_path) as conninfo:
        assert query(conninfo, "SELECT 1") == 1


def test_a_server_that_cannot_start_says_why(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir, settings={"shared_buffers": "none"})
    with pytest.raises(EmbeddedPostgresError, match="invalid value for parameter"):
        server.start()
    assert not server.alive()


def test_no_binaries_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_candidates", lambda: iter([Path("/nowhere")]))
    with pytest.raises(EmbeddedPostgresError, match="install the Python package"):
        find_binaries()


@pytest.mark.skipif(not DEBIAN_15.exists(), reason=f"no other PostgreSQL version at {DEBIAN_15}")
def test_another_major_version_is_refused_with_the_way_out(data_dir: Path) -> None:
    server = EmbeddedPostgres(data_dir, binaries=DEBIAN_15)
    with pytest.raises(EmbeddedPostgresError, match=r"was made by PostgreSQL 18.*pg_dumpall"):
        server.start()


# -- several users --------------------------------------------------------------------------------


def test_a_running_server_is_adopted_and_left_alone(server: EmbeddedPostgres) -> None:
    conninfo = server.start()
    with running(server.data_dir) as adopted:
        assert adopted == conninfo
    assert server.alive()
    assert query(conninfo, "SELECT 1") == 1


def test_the_last_command_stops_the_server(data_dir: Path) -> None:
    first, second = (EmbeddedPostgres(data_dir, tied=False) for _ in range(2))
    first.start()
    second.start()
    assert first.pid == second.pid
    first.stop()  # it started the server, but is not the last
    assert second.alive()
    second.stop()
    assert not (second.cluster / "postmaster.pid").exists()


def test_commands_at_the_same_time_share_one_server(data_dir: Path) -> None:
    program = (
        "import sys, psycopg; from pathlib import Path; from farebox.embedded import running\n"
        "with running(Path(sys.argv[1])) as conninfo:\n"
        "    print(psycopg.connect(conninfo).execute('SELECT 6 * 7').fetchone()[0])\n"
    )
    commands = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, str(data_dir)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [command.communicate(timeout=60)[0] for command in commands] == ["42\n"] * 4
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def test_a_gateway_waits_a_little_for_commands(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_GRACE_ROUNDS", 3)
    server.start()
    with running(server.data_dir):
        server.stop()
        assert not (server.cluster / "postmaster.pid").exists()


# -- death ----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("whole", [False, True], ids=["postmaster", "every process"])
def test_what_was_committed_survives_a_kill(server: EmbeddedPostgres, whole: bool) -> None:
    conninfo = server.start()
    query(conninfo, "CREATE TABLE kept (x integer)")
    for x in range(50):
        query(conninfo, f"INSERT INTO kept VALUES ({x})")
    pid = server.pid
    assert pid is not None
    for victim in [pid, *(children(pid) if whole else [])]:
        with contextlib.suppress(ProcessLookupError):  # a worker that had done its work
            os.kill(victim, signal.SIGKILL)
    server.wait()
    assert not server.alive()
    assert (server.cluster / "postmaster.pid").exists()  # stale, and it still says "ready"
    assert query(server.start(), "SELECT count(*) FROM kept") == 50
    assert server.pid != pid


def test_a_stale_pid_that_was_given_to_another_process_does_no_harm(
    server: EmbeddedPostgres,
) -> None:
    server.start()
    pid_file = server.cluster / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    server.stop()
    with subprocess.Popen(["sleep", "60"]) as stranger:  # noqa: S607 - any process will do
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:], ""]))
        assert query(server.start(), "SELECT 1") == 1
        stranger.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's death signal is Linux's")
@pytest.mark.parametrize("thread", [False, True], ids=["main thread", "another thread"])
def test_a_killed_gateway_takes_its_server_along(data_dir: Path, thread: bool) -> None:
    program = (
        "import sys, threading; from pathlib import Path\n"
        "from farebox.embedded import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1]))\n"
        f"starter = threading.Thread(target=server.start) if {thread} else None\n"
        "starter.start() or starter.join() if starter else server.start()\n"
        "print(server.pid, flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as gateway:
        assert gateway.stdout is not None
        pid = int(gateway.stdout.readline())
        # The thread that called start is long gone, and the server is still there.
        assert query(EmbeddedPostgres(data_dir).conninfo, "SELECT 1") == 1
        gateway.kill()
    assert wait_until_gone(pid)
    with running(data_dir) as conninfo:
        assert query(conninfo, "SELECT 1") == 1


def test_wait_ends_with_the_server(server: EmbeddedPostgres) -> None:
    server.start()
    adopter = EmbeddedPostgres(server.data_dir, tied=False)
    adopter.start()
    waiters = [threading.Thread(target=one.wait) for one in (server, adopter)]
    for waiter in waiters:
        waiter.start()
    assert all(waiter.is_alive() for waiter in waiters)
    assert server.pid is not None
    os.kill(server.pid, signal.SIGINT)
    for waiter in waiters:
        waiter.join(timeout=20)
        assert not waiter.is_alive()
    adopter.stop()


# -- who runs it ----------------------------------------------------------------------------------


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A directory that an unprivileged user may pass through, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="farebox-open-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def _is_open_to_all(path: Path) -> bool:
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_root_without_user_namespaces_hands_the_directory_to_nobody(
    open_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not _is_open_to_all(embedded.find_binaries() / "initdb"):
        pytest.skip("this checkout lies where nobody but root may look")
    monkeypatch.setattr(embedded, "_user_namespaces_allowed", lambda: False)
    server = EmbeddedPostgres(open_dir / "data", settings=NO_SYNC)
    try:
        query(server.start(), "CREATE TABLE kept ()")
    finally:
        server.stop()
    assert server.cluster.stat().st_uid == embedded.NOBODY
    monkeypatch.undo()  # namespaces are back, but the directory has its owner now
    with running(open_dir / "data") as conninfo:
        assert query(conninfo, "SELECT count(*) FROM kept") == 0


@pytest.mark.skipif(
    os.geteuid() != 0 or not embedded._user_namespaces_allowed(),
    reason="needs root in a system with user namespaces; otherwise all other tests show it",
)
@pytest.mark.parametrize("uid", [1, 1234], ids=["with a name", "without one"])
def test_an_ordinary_user_runs_it(tmp_path: Path, uid: int) -> None:
    program = (
        "import os, sys; from pathlib import Path; from farebox.embedded import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1]), settings={'fsync': 'off'})\n"
        "server.start(); print(os.geteuid(), server.cluster.stat().st_uid); server.stop()\n"
    )
    done = subprocess.run(
        [
            *("unshare", "--user", f"--map-user={uid}", f"--map-group={uid}", "--"),
            *(sys.executable, "-c", program, str(tmp_path / "data")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (f"{uid} {uid}\n", "")
