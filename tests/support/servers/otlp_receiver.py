"""A minimal span collector on 127.0.0.1: OTLP over HTTP, decoded with OpenTelemetry's own messages."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from deploy.local.server_process import free_port
from tests.support.programs.process import until


@dataclass(frozen=True)
class Seen:
    """One span as it arrived. Ids in hex, an empty parent: none. events: their names and attributes, in order."""

    service: str
    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    began_ns: int
    over_ns: int
    is_error: bool


class Collector:
    """Listens on its port between start and stop; received spans are kept after stop."""

    def __init__(self) -> None:
        self.port = free_port()
        self.spans: list[Seen] = []
        self._server: ThreadingHTTPServer | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, trace_id: str, name: str | None = None) -> list[Seen]:
        """The spans of this trace, earliest first."""
        found = [one for one in self.spans if one.trace_id == trace_id and name in (None, one.name)]
        return sorted(found, key=lambda one: one.began_ns)

    def wait_for(self, trace_id: str, names: Sequence[str]) -> list[Seen]:
        """Waits until the spans of this trace have these names; returns them. Raises TimeoutError."""

        def arrived() -> bool:
            return sorted(names) == sorted(one.name for one in self.of(trace_id))

        until(arrived, what=f"{sorted(names)} but {sorted(one.name for one in self.of(trace_id))}")
        return self.of(trace_id)

    def start(self) -> None:
        takes = self._take

        class Answers(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                takes(self.path, self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Answers)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _take(self, path: str, body: bytes) -> None:
        assert "/v1/traces" == path
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            service = _attributes(of_resource.resource.attributes)["service.name"]
            for of_scope in of_resource.scope_spans:
                self.spans += [_seen(service, span) for span in of_scope.spans]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()


def _seen(service: str, span: Any) -> Seen:
    events = [(event.name, _attributes(event.attributes)) for event in span.events]
    return Seen(
        service, span.name, span.kind, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), _attributes(span.attributes),
        events, span.start_time_unix_nano, span.end_time_unix_nano, is_error=span.status.code == 2,
    )  # fmt: skip


def _attributes(found: Any) -> dict[str, Any]:
    return {one.key: _value(one.value) for one in found}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)
