"""The connection to a Ray cluster: connecting, counting its room for workers, starting them.

This is the only module that imports Ray. It also turns Ray's errors into one line.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from qbench.engines.base import EngineOptions
from qbench.engines.ray_worker import RayWorker
from qbench.engines.worker_process import count_cores
from qbench.errors import QbenchError

PORT_TIMEOUT_S = 10.0
"""Longest wait for the cluster's port."""
CONNECT_TRIES, BETWEEN_TRIES_S = 3, 3.0
"""How often a cluster that answers is asked to accept this process, and the pause in between."""
LOCAL_STORE_BYTES = 256 << 20
"""Size of Ray's object store on this machine. By default it takes a third of the memory."""
CLOSE_WORKER_S = 3.0
"""Longest wait for a worker to delete its temporary folder."""


class RayCluster:
    """A Ray cluster on which workers of one kind are started."""

    def __init__(self, options: EngineOptions, run_function: str, path: list[str]) -> None:
        self.options, self.run_function, self.path = options, run_function, path

    def connect(self) -> None:
        """Connect to the cluster at the given address, to one on this machine, or start one.

        One is started on this machine only if no address is given and none is running.
        """
        import ray

        self.ray: Any = ray
        address = self.options.address or os.environ.get("RAY_ADDRESS")
        try:
            check_port(address or "")
            self._connect_with_retries(address or "auto")
        except (ConnectionError, RuntimeError, ValueError, OSError, AssertionError) as error:
            # With the address "auto", a ConnectionError means that no cluster is running here.
            if address or not isinstance(error, ConnectionError):
                where = f"at {address}" if address else "here"
                raise QbenchError(
                    f"no Ray cluster answers {where}: {first_line(error)};"
                    " start one with `ray start`, or see --address"
                ) from error
            self._initialize("local")

    def _connect_with_retries(self, address: str) -> None:
        # A cluster that has just started, or is busy, already listens at its `ray://` port before
        # it can accept a client. It then aborts the connection.
        for _ in range(CONNECT_TRIES - 1):
            with suppress(ConnectionAbortedError):
                self._initialize(address)
                return
            self.ray.shutdown()
            time.sleep(BETWEEN_TRIES_S)
        self._initialize(address)

    def _initialize(self, address: str) -> None:
        # These options are allowed only for a cluster that is started here.
        local_options: dict[str, Any] = {
            "num_cpus": count_cores(),
            "object_store_memory": LOCAL_STORE_BYTES,
            "include_dashboard": False,
        }
        self.ray.init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            **(local_options if address == "local" else {}),
        )

    def disconnect(self, actors: list[Any]) -> None:
        """Let the workers delete their temporary folders, and leave the cluster."""
        # The cluster may be gone, or a worker may hang. Leaving must succeed anyway.
        with suppress(Exception):
            for actor in actors:
                self.ray.get(actor.close.remote(), timeout=CLOSE_WORKER_S)
        with suppress(Exception):
            self.ray.shutdown()

    def worker_resources(self) -> dict[str, float]:
        """Return the CPUs and GPUs of a worker: by default a GPU if the cluster has any."""
        gpus = self.options.gpus
        if gpus is None:
            uses_gpu = self.options.device.startswith("cuda") or (
                self.options.device == "auto" and self.ray.cluster_resources().get("GPU")
            )
            gpus = 1.0 if uses_gpu else 0.0
        return {"CPU": 1.0 if self.options.cpus is None else self.options.cpus, "GPU": gpus}

    def count_room(self) -> int:
        """Return the number of workers that the living nodes have room for, up to the limit."""
        needed = {name: amount for name, amount in self.worker_resources().items() if amount}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        # A worker must fit into one node, so nodes are counted one by one. The small number makes
        # up for fractions: 1 / 0.1 may be slightly less than ten.
        room = sum(
            int(min((has.get(name, 0.0) / n + 1e-9 for name, n in needed.items()), default=1))
            for has in nodes
        )
        return min(room, self.options.workers or room)

    def start_worker(self) -> Any:
        """Start a worker, and return its actor. Ray places it when it has the resources."""
        resources = self.worker_resources()
        options = {
            "num_cpus": resources["CPU"],
            "num_gpus": resources["GPU"],
            # The coordinator decides what is tried again, from which checkpoint.
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        # Ray shows a worker only the GPU that it was given, so this is always the first one.
        device = "cuda:0" if resources["GPU"] else "cpu"
        actor_class: Any = self.ray.remote(RayWorker).options(**options)
        return actor_class.remote(device, self.options.preload, self.path, self.run_function)

    def kill(self, actor: Any) -> None:
        """Kill a worker, whatever its state."""
        with suppress(Exception):
            self.ray.kill(actor)

    def cannot_start(self, error: Exception) -> bool:
        """Return whether an actor's error means that no worker can be started at all."""
        # Ray has no class of its own for an error in an actor's constructor.
        in_constructor = "creation task" in str(error).lower().split("\n")[0]
        return isinstance(error, self.ray.exceptions.RayTaskError) or in_constructor

    def describe_resources(self) -> str:
        """Return the resources of the whole cluster in words."""
        return format_resources(self.ray.cluster_resources())


def is_node_loss(error: Exception) -> bool:
    """Return whether an actor died because its node was lost."""
    # Ray says this only in the text of the error, in words that depend on its version.
    signs = ("node has died", "node was terminated", "node is dead")
    return any(sign in str(error) for sign in signs)


def check_port(address: str) -> None:
    """Raise OSError if nothing listens at an address. Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PORT_TIMEOUT_S).close()


def format_resources(resources: Mapping[str, float]) -> str:
    """Return CPUs and GPUs as text, such as `2 CPU and 0.5 GPU`."""
    return " and ".join(
        f"{resources.get(name, 0.0):g} {name}"
        for name in ("CPU", "GPU")
        if name == "CPU" or name in resources
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error, with the last line if the first only announces it."""
    lines = list_lines(error)
    if lines[0].endswith(":") and len(lines) > 1:
        return f"{lines[0]} {lines[-1]}"[:200]
    return lines[0][:200]


def last_line(error: BaseException) -> str:
    """Return the last line of an error of Ray, which names the exception behind it."""
    return list_lines(error)[-1][:200]


def list_lines(error: BaseException) -> list[str]:
    """Return the lines of an error's text that are not empty, or else its class's name."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines or [type(error).__name__]
