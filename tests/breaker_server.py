"""A tiny upstream that answers each key just what a test says."""
from __future__ import annotations
import json, threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Said = tuple[int, dict[str, str], bytes]

class Odd:
    def __init__(self, answer: Callable[[str, str, bytes, dict], Said]) -> None:
        self.calls: list[tuple[str, str, bytes]] = []
        odd = self
        class H(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def log_message(self, *a): pass
            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                key = (self.headers.get("authorization") or self.headers.get("api-key") or "").removeprefix("Bearer ")
                odd.calls.append((key, self.path, body))
                status, headers, said = answer(key, self.path, body, dict(self.headers))
                self.send_response(status)
                for n, v in {"content-type": "application/json", **headers}.items(): self.send_header(n, v)
                self.send_header("content-length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)
            do_GET = do_POST
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), H)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.base_url = f"http://127.0.0.1:{self.server.server_port}/v1"
    def close(self): self.server.shutdown(); self.server.server_close()

def chat(text="hi", **more) -> bytes:
    return json.dumps({"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
      "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
      "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}, **more}).encode()

def error(message, **more) -> bytes:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}).encode()
