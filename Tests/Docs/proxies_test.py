"""A stream and a WebSocket through the proxies as docs/deployment.md configures them, entry by entry."""

import unittest

from samples import ROOT, samples
from sandbox import Sandbox

# In the sandbox's own view of the folders, so that nothing of the machine's is touched.
SETUP = """
mount -t tmpfs none /etc/ssl/private
mount -t tmpfs none /run
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=parley.example.com \\
    -addext subjectAltName=DNS:parley.example.com -keyout /etc/ssl/private/parley.key -out /etc/ssl/private/parley.crt 2>/dev/null
cat /etc/ssl/private/parley.crt /etc/ssl/private/parley.key >/etc/ssl/private/parley.pem
chmod 644 /etc/ssl/private/parley.*
printf '127.0.0.1 localhost parley.example.com\\n' >hosts
mount --bind hosts /etc/hosts
export PARLEY_KEYS=main:0123456789abcdef0123456789abcdef PARLEY_MODEL=scripted
"""
START = {
    "nginx.conf": "mount -t tmpfs none /var/log/nginx; mount -t tmpfs none /etc/nginx/sites-enabled\n"
    "cp proxies/nginx.conf /etc/nginx/sites-enabled/parley; nginx -t; exec nginx -g 'daemon off;'",
    "Caddyfile": "export HOME=$PWD; caddy validate --config proxies/Caddyfile --adapter caddyfile; exec caddy run --config proxies/Caddyfile",
    "haproxy.cfg": "haproxy -c -f proxies/haproxy.cfg; exec haproxy -f proxies/haproxy.cfg",
}
LOCKSTEP = ".venv/bin/python Tests/Docs/lockstep.py https://parley.example.com /etc/ssl/private/parley.crt 0123456789abcdef0123456789abcdef"


class ProxiesTest(unittest.TestCase):
    def passes_through(self, name):
        sample = next(sample for sample in samples(ROOT / "docs" / "deployment.md") if sample.options.get("file") == f"proxies/{name}")
        sandbox = Sandbox()
        try:
            (sandbox.folder / "proxies").mkdir()
            (sandbox.folder / "proxies" / name).write_text(sample.text)
            status, output = sandbox.run(SETUP)
            self.assertEqual(status, 0, output)
            sandbox.begin("exec ./parley serve", "serving http")
            process, log = sandbox.start(START[name])
            sandbox.background.append(process)
            status, output = sandbox.run(LOCKSTEP)
            self.assertEqual(status, 0, f"{output}\n{log.read_text()}")
        finally:
            sandbox.close()

    def test_nginx_passes_events_and_sockets_at_once(self):
        self.passes_through("nginx.conf")

    def test_caddy_passes_events_and_sockets_at_once(self):
        self.passes_through("Caddyfile")

    def test_haproxy_passes_events_and_sockets_at_once(self):
        self.passes_through("haproxy.cfg")


if __name__ == "__main__":
    unittest.main()
