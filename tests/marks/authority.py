"""A time-stamping authority on loopback, with certificates of its own."""

import subprocess
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONFIG = """
[req]
distinguished_name=name
[name]
[authority]
basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign
subjectKeyIdentifier=hash
[stamp]
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=critical,timeStamping
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
[own]
serial=serial
default_policy=1.3.6.1.4.1.99999.1
digests=sha256,sha384,sha512
signer_digest=sha256
accuracy=secs:1
ess_cert_id_alg=sha256
"""


class Authority:
    """Answers time-stamp queries (RFC 3161) with `openssl ts`; `answer` can be replaced."""

    def __init__(self, folder):
        self.folder, self.asked, self._lock = folder, 0, threading.Lock()
        self.answer: Callable[[bytes], bytes] = self.stamp
        (folder / "config").write_text(CONFIG)
        (folder / "serial").write_text("01")
        new_key = "-newkey rsa:2048 -nodes -config config"
        self._openssl(
            f"req -x509 {new_key} -keyout ca.key -out ca.pem -subj /CN=authority -extensions authority"
        )
        self._openssl(f"req -new {new_key} -keyout own.key -out own.csr -subj /CN=stamps")
        self._openssl(
            "x509 -req -in own.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out own.pem "
            "-extfile config -extensions stamp"
        )
        authority = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                query = self.rfile.read(int(self.headers["content-length"]))
                authority.asked += 1
                said = authority.answer(query)
                self.send_response(200 if said else 503)
                self.send_header("Content-Type", "application/timestamp-reply")
                self.send_header("Content-Length", str(len(said)))
                self.end_headers()
                self.wfile.write(said)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"
        self.certificate = folder / "ca.pem"

    def _openssl(self, command):
        subprocess.run(["openssl", *command.split()], check=True, capture_output=True, cwd=self.folder)

    def stamp(self, query):
        with self._lock:
            (self.folder / "query").write_bytes(query)
            self._openssl(
                "ts -reply -config config -section own -queryfile query -signer own.pem -inkey own.key "
                "-chain ca.pem -out reply"
            )
            return (self.folder / "reply").read_bytes()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
