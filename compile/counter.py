"""Counts what XLA compiles. Imports jax only when it starts to."""

from typing import Any

BACKEND_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class CompileCounter:
    """Backend compilations of this process between `start` and `stop`, whoever asks for them. Also a context."""

    def __init__(self):
        self.count = 0

    def start(self) -> None:
        import jax.monitoring

        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def stop(self) -> None:
        import jax.monitoring

        jax.monitoring.unregister_event_duration_listener(self._hear)

    def __enter__(self) -> "CompileCounter":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
        self.count += event == BACKEND_COMPILE_EVENT
