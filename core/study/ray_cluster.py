"""Being in touch with Ray: a cluster of its own on this machine, or one that runs somewhere; what is wrong, in words.

Knows addresses; nothing of studies. Ray is needed only when something here is called.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from ..errors import InputError

LOCAL = "local"
"""The address that asks for a cluster of one's own."""
_PATIENCE = 60.0  # seconds for a cluster to answer
_STORE_BYTES = 128 * 2**20  # for tasks and results in passing
_SHORT = 40  # the path of a socket has to fit into about a hundred characters


def library() -> Any:
    """The library, told to report nothing to its makers."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise InputError(
            "Ray is not installed.", "Install it: pip install -r requirements-ray.txt -c constraints.txt", field="ray"
        ) from None
    return ray


def check_answers(address: str) -> None:
    """Raises `InputError` where no cluster answers at `address` (as Ray takes it)."""
    if address == LOCAL:
        return
    host, colon, port = address.rpartition(":")
    here = False
    if colon and "://" not in address:  # the usual mistakes, at once
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE) as connection:
                here = connection.getpeername()[0] == connection.getsockname()[0]
        except (OSError, OverflowError, ValueError) as error:
            raise _no_cluster(address, str(error)) from None
    problem = _asked(address)
    if problem == _TOKEN and here:
        # Ray keeps a token for its user, and shows it to a cluster that it finds on this machine, but to no address
        from ray._private.authentication import authentication_token_setup

        authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        problem = _asked(address)
    if problem:
        raise _no_cluster(address, problem)


def _asked(address: str) -> str:
    """Why no cluster answers; empty if one does. Another process asks: Ray may go on trying for many minutes, or end
    the process that asks."""
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK, address], env=os.environ | {"RAY_NUM_REDIS_GET_RETRIES": "5"},
            capture_output=True, text=True, errors="replace", timeout=_PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"nobody answered for {_PATIENCE:g} seconds."
    if not asked.returncode:
        return ""
    said = " ".join(asked.stdout.split())
    return _TOKEN if "InvalidAuthToken" in said else said.partition("#")[0] or f"Ray ended ({asked.returncode})."


_TOKEN = "it asks for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN."
_ASK = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False, logging_level="ERROR")
except Exception as error:
    print(error, "#", error.__cause__)
    sys.exit(1)
"""


def _no_cluster(address: str, reason: str) -> InputError:
    what = "Ray cannot be started here" if address == LOCAL else f"There is no Ray cluster at {address!r}"
    return InputError(
        f"{what}: {reason[:400]}",
        "Give --ray the host:port of a running cluster with the same Python and Ray, or local.",
        field="ray",
    )


@contextlib.contextmanager
def connected(ray: Any, address: str, *, cpus: int) -> Iterator[None]:
    """In touch with a cluster, or with one of our own. Where this process is in touch with one already, that one."""
    if ray.is_initialized():
        yield
        return
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": "ERROR"}
    folder = None
    try:
        try:
            if address == LOCAL:
                root = tempfile.gettempdir()
                folder = tempfile.mkdtemp(prefix="ray", dir=root if len(root) < _SHORT else "/tmp")
                with _loopback():
                    ray.init(
                        address=LOCAL, num_cpus=cpus, include_dashboard=False, object_store_memory=_STORE_BYTES,
                        _node_ip_address="127.0.0.1", _temp_dir=folder, **quiet,
                    )  # fmt: skip
            else:
                ray.init(address=address, **quiet)
        except Exception as error:
            raise _no_cluster(address, " ".join(str(error).split())) from None
        yield
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Ray takes 127.0.0.1 for the machine's outer address, on which others could reach a local cluster. Not here."""
    from ray._private import services

    before = services.resolve_ip_for_localhost
    services.resolve_ip_for_localhost = lambda host: host
    try:
        yield
    finally:
        services.resolve_ip_for_localhost = before


def first_line(error: Exception) -> str:
    """What Ray says, without what stands below."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
