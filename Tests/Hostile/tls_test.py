"""Sockets and the node's own calls over real TLS, with a certificate that no system trusts."""

import asyncio
import http.server
import json
import pathlib
import re
import ssl
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.request

import websockets

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "Browser"))
from node import Node, wait_for  # noqa: E402

SECRET = "0123456789abcdef0123456789abcdef0123456789abcdef"


class Certificate:
    """Signed by itself, for one name."""

    def __init__(self, folder, name):
        self.certificate, self.key = f"{folder}/{name}.pem", f"{folder}/{name}.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
            + ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-keyout", self.key, "-out", self.certificate],
            check=True,
            stderr=subprocess.DEVNULL,
        )


class Receiver:
    """Takes what is POSTed over https."""

    def __init__(self, certificate):
        self.bodies = bodies = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # Handshakes that fail are what is tested.
        self.server.handle_error = lambda *_: None
        # The handshake belongs to a connection's own thread: one that fails must not end the server's.
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"https://localhost:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class TLSNode(Node):
    """A node that itself speaks TLS."""

    def __init__(self, certificate):
        super().__init__(options=["--tls-cert", certificate.certificate, "--tls-key", certificate.key])
        self.environment["PARLEY_KEYS"] = f"me:{SECRET}"
        self.context = ssl.create_default_context(cafile=certificate.certificate)

    def request(self, method, path, body=None, headers=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {SECRET}", **(headers or {})}
        request = urllib.request.Request(f"https://localhost:{self.port}{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30, context=self.context) as answer:
            return answer.status, answer.read(), answer.headers

    def socket(self, context):
        return websockets.connect(
            f"wss://localhost:{self.port}/v1/socket",
            ssl=context,
            subprotocols=["parley.v1"],
            max_size=None,
            additional_headers={"Authorization": f"Bearer {SECRET}"},
        )


class TLSTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="parley-tls-")
        self.addCleanup(folder.cleanup)
        self.certificate = Certificate(folder.name, "localhost")
        self.other = Certificate(folder.name, "other.example")

    def start(self, node):
        self.addCleanup(node.close)
        return node.start()

    def receive(self, certificate):
        receiver = Receiver(certificate)
        self.addCleanup(receiver.close)
        return receiver

    def test_a_socket(self):
        """Everything comes, in order and whole, over many records both ways; who does not trust the certificate gets none."""
        node = self.start(TLSNode(self.certificate))
        # Each larger than a record, together larger than what a connection holds unsent.
        messages = [{"number": number, "text": chr(97 + number) * 100_000} for number in range(20)]
        node.request("PUT", "/v1/stream/a", [])

        async def talk():
            async with node.socket(node.context) as socket:
                self.assertEqual(socket.subprotocol, "parley.v1")
                await socket.send(json.dumps({"op": "follow", "ref": 1, "channel": "a", "offset": "-1"}))
                for message in messages:
                    await socket.send(json.dumps({"op": "append", "ref": 2, "channel": "a", "entries": [message]}))
                seen, acknowledged = [], 0
                while len(seen) < len(messages) or acknowledged < len(messages):
                    told = json.loads(await asyncio.wait_for(socket.recv(), 30))
                    self.assertNotIn("error", told)
                    seen += told.get("entries", [])
                    acknowledged += "ok" in told
                self.assertEqual(seen, messages)
                await asyncio.wait_for(await socket.ping(), 30)
            with self.assertRaises(ssl.SSLCertVerificationError):
                async with node.socket(ssl.create_default_context()):
                    pass
            # The handshake is one thing, the key another.
            with self.assertRaises(websockets.InvalidStatus) as refused:
                async with websockets.connect(f"wss://localhost:{node.port}/v1/socket", ssl=node.context):
                    pass
            self.assertEqual(refused.exception.response.status_code, 401)

        asyncio.run(talk())
        self.assertEqual(json.loads(node.request("GET", "/v1/stream/a?offset=-1")[1])[:1], messages[:1])

    def webhook(self, receiver, authority):
        node = Node(options=["--webhook", receiver.url, "--webhook-allow-private", "--webhook-events", "turn.completed"])
        node.environment["PARLEY_WEBHOOK_SECRET"] = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
        if authority:
            node.environment["PARLEY_CA_FILE"] = authority
        self.start(node)
        node.append("assistant/a", type="message", text="hello")
        return node

    def failed_attempts(self, node):
        return int(re.search(r"parley_webhook_failed_attempts_total (\d+)", node.request("GET", "/metrics")[1].decode())[1])

    def test_a_webhook(self):
        """The receiver's certificate is checked against the operator's file."""
        receiver = self.receive(self.certificate)
        self.webhook(receiver, self.certificate.certificate)
        body = wait_for("the delivery", lambda: next(iter(receiver.bodies), None))
        self.assertEqual((body["type"], body["agent"]), ("turn.completed", "assistant/a"))

    def test_a_webhook_with_an_untrusted_certificate(self):
        """Without the file, or with another name in the certificate, nothing is sent; it is tried again."""
        for certificate, authority in [(self.certificate, None), (self.other, self.other.certificate)]:
            receiver = self.receive(certificate)
            node = self.webhook(receiver, authority)
            wait_for("an attempt to fail", lambda: self.failed_attempts(node))
            self.assertEqual(receiver.bodies, [])

    def test_a_subscription(self):
        """A wake goes over https, to who can be trusted only."""
        for authority in [self.certificate, self.other]:
            receiver = self.receive(self.certificate)
            node = Node()
            node.environment["PARLEY_CA_FILE"] = authority.certificate
            self.start(node)
            subscription = {"type": "webhook", "pattern": "events/*", "webhook": {"url": receiver.url}}
            status, body, _ = node.request("PUT", "/v1/stream/__ds/subscriptions/work", subscription)
            self.assertEqual(status, 201, body)
            self.assertEqual(node.request("PUT", "/v1/stream/events/a", [1])[0], 201)
            if authority is self.certificate:
                wake = wait_for("the wake", lambda: next(iter(receiver.bodies), None))
                self.assertEqual((wake["subscription_id"], wake["streams"][0]["path"]), ("work", "events/a"))
            else:
                path = "/v1/stream/__ds/subscriptions/work"
                wait_for("the wake to fail", lambda: json.loads(node.request("GET", path)[1])["status"] == "failed")
                self.assertEqual(receiver.bodies, [])

    def test_a_file_that_is_not_there(self):
        """A mistake in the setting is said at the start."""
        node = Node()
        self.addCleanup(node.close)
        node.environment["PARLEY_CA_FILE"] = "/nowhere/ca.pem"
        with self.assertRaisesRegex(AssertionError, "PARLEY_CA_FILE is '/nowhere/ca.pem', which cannot be read"):
            node.start()


if __name__ == "__main__":
    unittest.main()
