"""A real nginx with deploy/nginx in front of a real API: nothing is held back, nothing too large comes through, and who asks is known."""

from __future__ import annotations

import datetime
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.local import probe
from deploy.local.server_process import die_with_parent, free_port
from tests.api.server.test_api_server import Api, serving
from tests.support.programs.process import until
from tests.support.queue_tools import query

CONFIGS = Path(__file__).resolve().parents[3] / "deploy" / "nginx"
# As Debian has it; who is not root has no sbin on his path.
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
NEWCOMERS = 3

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="there is no nginx on this machine: apt-get install nginx-light"),
    pytest.mark.usefixtures("environment"),
]


@dataclass
class Front:
    """An nginx of this test. port: with TLS and the API at /; path_port: the API at /queue/, in plain HTTP."""

    port: int
    path_port: int
    folder: Path

    def connect(self) -> http.client.HTTPSConnection:
        trusted = ssl.create_default_context(cafile=str(self.folder / "fullchain.pem"))
        return http.client.HTTPSConnection("localhost", self.port, timeout=60, context=trusted)

    def call(self, method: str, path: str, body: Any = None, *, token: str = "sk-nginx", **headers: str) -> http.client.HTTPResponse:
        """The answer, read whole: `answer.body`."""
        with closing(self.connect()) as connection:
            return asked(connection, method, path, body, token=token, **headers)


def asked(connection: Any, method: str, path: str, body: Any = None, *, token: str, **headers: str) -> Any:
    content = None if body is None else json.dumps(body)
    wanted = {"Authorization": f"Bearer {token}", "Content-Type": "application/json", **headers}
    connection.request(method, path, content, wanted)
    answer = connection.getresponse()
    answer.body = answer.read()
    return answer


def certificate(folder: Path) -> None:
    """fullchain.pem and privkey.pem for localhost are there."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "fullchain.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "privkey.pem").write_bytes(plain)


def configured(folder: Path, *, api: int, port: int, path_port: int) -> Path:
    """The shipped files with this test's ports and certificate, and around them what /etc/nginx/nginx.conf has."""
    own = (CONFIGS / "nowserving.conf").read_text()
    changes = {
        r" *listen \[::\]:443 ssl;\n": "",
        r"listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
        r"127\.0\.0\.1:8000": f"127.0.0.1:{api}",
        r"queue\.example\.com": "localhost",
        r"/etc/nginx/tls/": f"{folder}/",
        r"/var/log/nginx/": f"{folder}/",
    }
    for was, now in changes.items():
        own, count = re.subn(was, now, own)
        assert count, f"nothing in nowserving.conf is {was}"
    under = (CONFIGS / "under-a-path.conf").read_text().replace("127.0.0.1:8000", f"127.0.0.1:{api}")
    under = under.replace("/var/log/nginx/", f"{folder}/")
    user = "user root;" if os.geteuid() == 0 else ""  # the folders of a test are its own
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1; {user}\n"
        f"events {{ worker_connections 256; }}\n"
        f"http {{\naccess_log {folder}/access.log;\n{temporary}{own}\nserver {{ listen 127.0.0.1:{path_port};\n{under}\n}}\n}}\n"
    )
    return file


@pytest.fixture(scope="module")
def api(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    settings = {"NOWSERVING_NEW_KEYS_PER_IP_PER_HOUR": str(NEWCOMERS), "NOWSERVING_MAX_BODY_BYTES": "1000000"}
    with serving(tmp_path_factory.mktemp("api") / "log", **settings) as made:
        yield made


@pytest.fixture(scope="module")
def front(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    made = Front(free_port(), free_port(), tmp_path_factory.mktemp("nginx"))
    certificate(made.folder)
    file = configured(made.folder, api=api.port, port=made.port, path_port=made.path_port)
    tried = subprocess.run([str(NGINX), "-t", "-c", str(file)], capture_output=True, text=True, check=False)
    assert 0 == tried.returncode, tried.stderr
    assert "warn" not in tried.stderr
    process = subprocess.Popen([str(NGINX), "-c", str(file)], preexec_fn=die_with_parent, stderr=subprocess.DEVNULL)
    try:
        until(lambda: probe.listens(made.port), what="nginx listens")
        yield made
    finally:
        process.terminate()
        process.wait(30)


def test_waiting_stream_is_notified_at_once(front: Front) -> None:
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    with closing(front.connect()) as connection:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(body), {"Authorization": "Bearer sk-stream", "Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        first = answer.readline()

        assert (200, True) == (answer.status, answer.headers["Content-Type"].startswith("text/event-stream"))
        assert first.startswith(b":")
        # There is no pacer: it was sent while the job waits, not because anything had ended.
        assert {"queued"} == {row.status for row in query("SELECT status FROM job WHERE endpoint = '/v1/chat/completions' AND streamed")}


def test_two_requests_come_over_one_connection(front: Front) -> None:
    with closing(front.connect()) as connection:
        first = asked(connection, "GET", "/healthz", token="sk-x")
        socket = connection.sock
        second = asked(connection, "GET", "/healthz", token="sk-x")

        assert [200, 200] == [first.status, second.status]
        assert socket is connection.sock


def test_nginx_refusals_have_the_apis_error_shape(front: Front) -> None:
    ours = front.call("POST", "/v1/jobs", {"endpoint": "x" * 1_100_000})
    with closing(front.connect()) as connection:
        connection.putrequest("POST", "/v1/jobs")
        for name, value in (
            ("Authorization", "Bearer sk-nginx"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(80 * 2**20)),
        ):
            connection.putheader(name, value)
        connection.endheaders()  # nginx answers to the length alone
        theirs = connection.getresponse()
        result = json.loads(theirs.read())

    assert [413, 413] == [ours.status, theirs.status]
    assert json.loads(ours.body)["error"].keys() == result["error"].keys()  # type: ignore[attr-defined]
    assert "request_too_large" == result["error"]["code"] == json.loads(ours.body)["error"]["code"]  # type: ignore[attr-defined]
    assert ["application/json", "false"] == [theirs.headers["Content-Type"], theirs.headers["x-should-retry"]]


def test_client_address_comes_from_the_trusted_proxy(front: Front) -> None:
    def brings(address: str) -> list[int]:
        tokens = [f"sk-{address}-{n}" for n in range(NEWCOMERS + 1)]
        return [front.call("GET", "/v1/jobs", token=token, **{"X-Forwarded-For": address}).status for token in tokens]

    # nginx appends the peer address, which is this machine; the address before it comes from a proxy of this machine, so the API trusts it.
    assert [200] * NEWCOMERS + [429] == brings("9.9.9.9")
    assert [200] * NEWCOMERS + [429] == brings("8.8.8.8")


def test_links_are_https_as_the_caller_came(front: Front) -> None:
    assert 201 == front.call("POST", "/v1/sessions", {"id": "files"}, token="sk-links").status
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\nContent-Type: text/plain\r\n\r\nhello\r\n--x--\r\n'
    with closing(front.connect()) as connection:
        headers = {"Authorization": "Bearer sk-links", "Content-Type": "multipart/form-data; boundary=x"}
        connection.request("POST", "/v1/sessions/files/attachments", form, headers)
        result = connection.getresponse().read().decode()

    assert "https://localhost/v1/artifacts/" in result


def test_metrics_require_authorisation(front: Front) -> None:
    assert 404 == front.call("GET", "/metrics").status


def test_under_a_path_the_api_is_the_same(front: Front) -> None:
    body = {"endpoint": "/v1/chat/completions", "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}}
    with closing(http.client.HTTPConnection("127.0.0.1", front.path_port, timeout=60)) as connection:
        made = asked(connection, "POST", "/queue/v1/jobs", body, token="sk-path")
        location = re.sub(r"^http://[^/]+", "", made.headers["Location"])
        followed = asked(connection, "GET", location, token="sk-path")
        metrics = asked(connection, "GET", "/queue/metrics", token="sk-path")

    assert (202, 200, 404) == (made.status, followed.status, metrics.status)
    assert location.startswith("/queue/v1/jobs/job_")


QUERIES = ("/pro/balance?apiKey={}", "/pro/chat/completions/x?apiKey={}", "/v1/dashboard/billing/usage?key={}", "/v1/jobs?api_key={}",
           "/nothing?token={}", "/metrics?key={}")  # fmt: skip


def ask_with_keys_in_queries(front: Front, canary: str) -> None:
    for query_path in QUERIES:
        front.call("GET", query_path.format(canary))
        with closing(http.client.HTTPConnection("127.0.0.1", front.path_port, timeout=60)) as connection:
            asked(connection, "GET", "/queue" + query_path.format(canary), token="sk-path")


def logged(front: Front) -> str:
    return "".join(file.read_text(errors="replace") for file in front.folder.glob("*.log"))


def test_no_log_of_nginx_has_a_query(front: Front, api: Api) -> None:
    ask_with_keys_in_queries(front, "sk-canary-of-nginx")

    until(lambda: '"GET /pro/balance HTTP/1.1" 200' in logged(front), what="logged", every_s=0.1)
    assert "canary" not in logged(front)


def test_unreachable_api_is_reported(front: Front, api: Api) -> None:
    """The last of this file: the API does not come back."""
    api.stop()
    began = time.monotonic()
    answer = front.call("GET", "/v1/jobs")

    assert (503, "unavailable") == (answer.status, json.loads(answer.body)["error"]["code"])  # type: ignore[attr-defined]
    assert ("application/json", "2") == (answer.headers["Content-Type"], answer.headers["Retry-After"])
    assert time.monotonic() - began < 10
    ask_with_keys_in_queries(front, "sk-canary-of-an-error")
    assert "canary" not in logged(front), "nginx quotes the request where the API is away"
