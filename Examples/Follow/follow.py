"""Follows an agent, whatever happens to the server: follow.py [assistant/me] [http://127.0.0.1:4437] [offset]"""

import json, re, sys, time

import httpx

agent, server, offset = sys.argv[1:] + ["assistant/me", "http://127.0.0.1:4437", "-1"][len(sys.argv) - 1 :]
if not re.fullmatch(r"[\w.~-]+/[\w.~-]+", agent, re.ASCII):
    sys.exit(f"'{agent}' names no agent; expected <kind>/<id>, such as assistant/me")
with httpx.Client(timeout=30) as client:  # A long poll is answered within 20 seconds.
    while True:
        try:
            query = {"offset": offset, "live": "long-poll", "view": "settled"}
            answer = client.get(f"{server}/v1/stream/agents/{agent}", params=query)
        except httpx.TransportError:
            time.sleep(0.5)  # The server is away. The offset says where to continue.
            continue
        if answer.status_code in (200, 204):
            for entry in answer.json() if answer.content else []:
                print(json.dumps(entry), flush=True)
            offset = answer.headers["Stream-Next-Offset"]  # After what was printed: saved, it resumes a later run.
            if answer.headers.get("Stream-Closed") == "true":
                break  # The agent has ended.
        elif answer.status_code in (429, 503) or answer.json()["code"] == "channel_not_found":
            time.sleep(0.5)  # No room at the moment, or no message yet.
        else:
            sys.exit(answer.json()["detail"])
