"""Reads a channel through a proxy and appends an entry only when the one before has arrived: what is held back on the way is never followed.

    lockstep.py <https url of the proxy> <certificate> <key>
"""

import json
import ssl
import sys
import time

import httpx
import websocket

ENTRIES = 30


def main():
    url, certificate, key = sys.argv[1:]
    context = ssl.create_default_context(cafile=certificate)
    headers = {"Authorization": f"Bearer {key}", "Accept-Encoding": "gzip, deflate, br"}
    with httpx.Client(base_url=url, verify=context, headers=headers, timeout=20) as client:
        wait_ready(client)
        client.put("/v1/stream/orders/1", headers={"Content-Type": "application/json"}).raise_for_status()
        follow_events(client)
        follow_socket(client, url, certificate, key)
        follow_answer(client)


def wait_ready(client):
    for _ in range(200):
        try:
            if client.get("/healthz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    sys.exit("the proxy does not lead to the server")


def append(client, number):
    client.post("/v1/stream/orders/1", json=[{"number": number}]).raise_for_status()


def follow_events(client):
    """Server-sent events: 30 entries, each sent when the one before was read."""
    expected = 0
    with client.stream("GET", "/v1/stream/orders/1?offset=-1&live=sse") as answer:
        answer.raise_for_status()
        append(client, expected)
        for line in answer.iter_lines():
            if line.startswith("data:") and f'"number":{expected}' in line.replace(" ", ""):
                expected += 1
                if expected == ENTRIES:
                    return
                append(client, expected)
    sys.exit(f"the events ended after {expected} entries")


def follow_socket(client, url, certificate, key):
    """The WebSocket: the same from its end on."""
    socket = websocket.create_connection(
        url.replace("https", "wss") + "/v1/socket", header=[f"Authorization: Bearer {key}"], sslopt={"ca_certs": certificate}, timeout=20)
    socket.send(json.dumps({"op": "follow", "ref": 1, "channel": "orders/1", "offset": "now"}))
    socket.recv()
    for number in range(ENTRIES, 2 * ENTRIES):
        append(client, number)
        while not any(entry.get("number") == number for entry in json.loads(socket.recv()).get("entries", [])):
            pass
    socket.close()


def follow_answer(client):
    """A model's answer, token by token: many pieces are here before it is complete."""
    client.post("/v1/agents/assistant/me", json={"type": "message", "text": "Tell me about the sea."}).raise_for_status()
    with client.stream("GET", "/v1/stream/agents/assistant/me?offset=-1&live=sse") as answer:
        pieces = 0
        for line in answer.iter_lines():
            pieces += line.count('"type":"text"')
            if '"turn.completed"' in line:
                break
            if pieces == 10:
                state = client.get("/v1/agents/assistant/me").json()["state"]
                assert state == "running", f"10 pieces of the answer came when the agent was {state}"
                pieces += 1
    assert pieces > 10, f"the answer came in {pieces} pieces"


if __name__ == "__main__":
    main()
