"""A stand-in for Microsoft Entra ID on loopback, over https, for the real azure-identity to log in to.

    with EntraServer(Authority(folder)) as entra:
        environment = entra.service_principal()

It gives tokens that Azurite's `--oauth basic` takes (a JWT whose signature is not looked at) to whoever brings what it
knows: the client secret, an assertion signed with the client's certificate, the token of a workload, or the header of
a managed identity. Everything it was asked stands in `asked`.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import ssl
import stat
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

TENANT = "7f0c1a3e-0000-4000-8000-00000000000a"
CLIENT = "7f0c1a3e-0000-4000-8000-00000000000b"
CLIENT_SECRET = "q~secret-of-the-client-SECRET"
WORKLOAD_TOKEN = "workload-token-SECRET"
IDENTITY_HEADER = "identity-header-SECRET"


class Certificates:
    """A certificate authority of the test's own, in a folder, with a certificate for 127.0.0.1 and one for a client."""

    def __init__(self, folder: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Blobark's tests")])
        authority = self._signed(self._name, self._key, authority=True)
        self.roots = folder / "roots.pem"
        self.roots.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
        self.server = self._made(folder, "server", ec.generate_private_key(ec.SECP256R1()))
        client_key = rsa.generate_private_key(65537, 2048)
        self.client_public_key = client_key.public_key()
        certificate, key = self._made(folder, "client", client_key)
        self.client = folder / "client-both.pem"
        self.client.write_bytes(certificate.read_bytes() + key.read_bytes())

    def _made(self, folder: Path, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> tuple[Path, Path]:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        files = folder / f"{name}.pem", folder / f"{name}.key"
        files[0].write_bytes(self._signed(subject, key).public_bytes(serialization.Encoding.PEM))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def _signed(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *, authority: bool = False
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(self._key, hashes.SHA256())
        )


class EntraServer:
    """The stand-in. `life_s` is the life of the tokens it gives; `tokens` are those that it gave."""

    def __init__(self, certificates: Certificates) -> None:
        self.certificates = certificates
        self.life_s = 3600
        self.asked: list[str] = []
        self.tokens: list[str] = []
        self._lock = threading.Lock()

    def __enter__(self) -> EntraServer:
        entra = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self._answer({name: values[0] for name, values in parse_qs(body).items()})

            def _answer(self, form: Mapping[str, str]) -> None:
                status, answer = entra.answer(self.path, dict(self.headers.items()), form)
                body = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certificates.server)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._server.server_address[1]}"

    # The environments of those who log in.

    def trust(self) -> dict[str, str]:
        """Return what makes a process trust the test's certificates and log in nowhere else."""
        return {"REQUESTS_CA_BUNDLE": str(self.certificates.roots), "AZURE_AUTHORITY_HOST": self.url}

    def service_principal(self, secret: str = CLIENT_SECRET) -> dict[str, str]:
        return {**self._client(), "AZURE_CLIENT_SECRET": secret}

    def certificate(self) -> dict[str, str]:
        return {**self._client(), "AZURE_CLIENT_CERTIFICATE_PATH": str(self.certificates.client)}

    def workload(self, folder: Path) -> dict[str, str]:
        file = folder / "workload-token"
        file.write_text(WORKLOAD_TOKEN)
        return {**self._client(), "AZURE_FEDERATED_TOKEN_FILE": str(file)}

    def managed_identity(self) -> dict[str, str]:
        return {**self.trust(), "IDENTITY_ENDPOINT": f"{self.url}/msi/token", "IDENTITY_HEADER": IDENTITY_HEADER}

    def cli(self, folder: Path) -> dict[str, str]:
        """A program `az` that has been logged in with: it prints a token, as the real one does."""
        token = {"accessToken": self.token(), "expires_on": int(time.time()) + self.life_s, "tokenType": "Bearer"}
        file = folder / "bin" / "az"
        file.parent.mkdir()
        file.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(token)}\nEND\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        path = f"{file.parent}{os.pathsep}{os.environ['PATH']}"
        # Without it a managed identity is looked for first, at an address that not every network refuses at once.
        return {**self.trust(), "PATH": path, "AZURE_TOKEN_CREDENTIALS": "AzureCliCredential"}

    def _client(self) -> dict[str, str]:
        return {**self.trust(), "AZURE_TENANT_ID": TENANT, "AZURE_CLIENT_ID": CLIENT}

    # What it answers.

    def token(self) -> str:
        now_s = int(time.time())
        with self._lock:
            claims = {
                "aud": "https://storage.azure.com",
                "iss": f"https://sts.windows.net/{TENANT}/",
                "iat": now_s - 60,
                "nbf": now_s - 60,
                "exp": now_s + self.life_s,
                "appid": CLIENT,
                "tid": TENANT,
                "jti": str(len(self.tokens)),
            }
            self.tokens.append(jwt.encode(claims, "nobody looks at the signature, 32 bytes", algorithm="HS256"))
            return self.tokens[-1]

    def answer(self, target: str, headers: Mapping[str, str], form: Mapping[str, str]) -> tuple[int, object]:
        url = urlsplit(target)
        with self._lock:
            self.asked.append(url.path)
        base = f"{self.url}/{TENANT}"
        if url.path.endswith("/.well-known/openid-configuration"):
            return 200, {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
            }
        if url.path == "/msi/token":
            if {name.lower(): value for name, value in headers.items()}.get("x-identity-header") != IDENTITY_HEADER:
                return 401, {"error": "unauthorized"}
            expires_on = str(int(time.time()) + self.life_s)
            return 200, {
                "access_token": self.token(),
                "expires_on": expires_on,
                "resource": "x",
                "token_type": "Bearer",
            }
        if url.path == f"/{TENANT}/oauth2/v2.0/token" and form.get("client_id") == CLIENT and self._proves(form):
            return 200, {"token_type": "Bearer", "expires_in": self.life_s, "access_token": self.token()}
        said = "AADSTS7000215: Invalid client secret provided.\r\nTrace ID: 00000000-0000-0000-0000-000000000000"
        return 401, {"error": "invalid_client", "error_description": said, "error_codes": [7000215]}

    def _proves(self, form: Mapping[str, str]) -> bool:
        if form.get("client_secret") == CLIENT_SECRET or form.get("client_assertion") == WORKLOAD_TOKEN:
            return True
        try:
            key = self.certificates.client_public_key
            said = jwt.decode(
                form["client_assertion"],
                key,
                algorithms=["PS256", "RS256"],
                audience=f"{self.url}/{TENANT}/oauth2/v2.0/token",
            )
        except (KeyError, jwt.InvalidTokenError):
            return False
        return bool(said["iss"] == CLIENT)
