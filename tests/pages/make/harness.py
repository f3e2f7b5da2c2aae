"""What every logger page needs around vLLM's own code: absent imports, HTTP series, rendering."""

from __future__ import annotations

import atexit
import importlib.abc
import importlib.machinery
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from types import ModuleType
from unittest.mock import MagicMock

HTTP_FED = {"2xx": 14, "4xx": 3}
HTTP_SINCE = (0, 8, 3)


class _Absent(ModuleType):
    """A third-party module that vLLM imports but the metric loggers never use."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=f"{self.__name__}.{name}")


class _AbsentFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: object = None, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        parts = fullname.split(".")
        if any(".".join(parts[: i + 1]) in self.names for i in range(len(parts))):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run: attributes are made up on access."""


def stub(names: list[str]) -> None:
    """Let `import <name>` succeed for modules that the metric code does not use."""
    sys.meta_path.insert(0, _AbsentFinder(set(names)))


def tolerate_known_model_types() -> None:
    """Older vLLM registers model types that newer transformers already has."""
    from transformers import AutoConfig

    register = AutoConfig.register

    def lenient(model_type: str, config: type, exist_ok: bool = False) -> None:
        register(model_type, config, exist_ok=True)

    AutoConfig.register = staticmethod(lenient)


def serve_http() -> None:
    """Put the instrumentator's http_ series on the page, as vLLM's API server does."""
    from fastapi import FastAPI, HTTPException
    from fastapi.testclient import TestClient
    from prometheus_fastapi_instrumentator import Instrumentator

    app = FastAPI()

    @app.post("/v1/completions")
    def completions(refuse: bool = False) -> dict[str, str]:
        if refuse:
            raise HTTPException(400)
        return {"object": "text_completion"}

    Instrumentator(excluded_handlers=["/metrics", "/health"]).add().instrument(app)
    with TestClient(app) as client:
        for _ in range(HTTP_FED["2xx"]):
            client.post("/v1/completions")
        for _ in range(HTTP_FED["4xx"]):
            client.post("/v1/completions?refuse=true")


def use_multiprocess_mode() -> None:
    """Make prometheus_client keep values in files; call before it is imported."""
    folder = tempfile.mkdtemp(prefix="pages-")
    atexit.register(shutil.rmtree, folder)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder


def render(front_ends: list[Callable[[], None]]) -> str:
    """Run the front ends and render the page the way vLLM serves it in this mode.

    In multiprocess mode each front end is a process of its own and the page is collected
    from their files; otherwise there is one front end and its default registry is the page.
    """
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        (front_end,) = front_ends
        front_end()
        return generate_latest().decode()
    fork = multiprocessing.get_context("fork")
    for front_end in front_ends:
        process = fork.Process(target=front_end)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"front end failed with {process.exitcode}")
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return generate_latest(registry).decode()
