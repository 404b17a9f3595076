"""parley.js in a real browser: over its WebSocket, over the server's death, and where no WebSocket gets through."""

import unittest

from console import start_browser
from node import Node, wait_for

FOLLOW = """
const [agent, options] = arguments;
window.seen = { entries: [], events: [], sockets: 0 };
const Socket = window.WebSocket;
const Counted = class extends Socket { constructor(...given) { super(...given); seen.sockets++; } };
const given = options.blocked ? { WebSocket: class { constructor() { throw new Error("blocked"); } } } : { WebSocket: Counted };
import("/parley.js").then(async ({ Parley, TextView }) => {
  window.parley = new Parley(given);
  const text = new TextView();
  const follow = parley.follow(`agents/${agent}`, { onEphemeral: event => seen.events.push(event) });
  window.follow = follow;
  for await (const entry of follow) {
    seen.entries.push(entry);
    seen.text = text.add(entry).text;
    if (entry.type === "turn.completed") seen.done = true;
  }
}).catch(error => { seen.failure = String(error); });
"""


class ClientTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = start_browser()
        cls.addClassCleanup(cls.browser.quit)

    def setUp(self):
        self.node = Node(model="scripted:tokens=120,rate=40").start()
        self.addCleanup(self.node.close)
        # A document of the server's that runs nothing of its own.
        self.browser.get(f"{self.node.url}/healthz")

    def seen(self):
        return self.browser.execute_script("return window.seen")

    def send(self, agent, text):
        self.node.append(agent, type="message", text=text)

    def check(self, agent, entries):
        log = self.node.entries(agent)
        self.assertEqual([entry["offset"] for entry in entries], [entry["offset"] for entry in log][: len(entries)])
        self.assertTrue(any(entry["type"] == "turn.completed" for entry in entries))

    def run_over_a_kill(self, agent, blocked):
        self.send(agent, "Tell me about the sea.")
        self.browser.execute_script(FOLLOW, agent, {"blocked": blocked})
        wait_for("some text", lambda: len(self.seen().get("text", "")) > 40)
        self.node.kill()
        self.node.start()
        wait_for("the end of the turn", lambda: self.seen().get("done"))
        seen = self.seen()
        self.assertIsNone(seen.get("failure"))
        self.check(agent, seen["entries"])
        result = [entry for entry in seen["entries"] if entry["type"] == "step.completed"][-1]
        self.assertEqual(seen["text"], result["text"])
        return seen

    def test_it_goes_on_over_its_websocket_after_kill_9(self):
        seen = self.run_over_a_kill("assistant/socket", blocked=False)
        self.assertGreaterEqual(seen["sockets"], 2)

    def test_it_streams_where_no_websocket_gets_through(self):
        seen = self.run_over_a_kill("assistant/stream", blocked=True)
        self.assertEqual(seen["sockets"], 0)

    def test_it_says_and_hears_what_is_never_stored(self):
        self.send("assistant/typing", "Hello.")
        self.browser.execute_script(FOLLOW, "assistant/typing", {})
        wait_for("the end of the turn", lambda: self.seen().get("done"))
        self.browser.execute_script("parley.ephemeral('agents/assistant/typing', { type: 'typing' })")
        events = wait_for("the event", lambda: self.seen()["events"])
        self.assertEqual((events[0]["type"], events[0]["channel"]), ("typing", "agents/assistant/typing"))
        self.assertFalse(any(entry["type"] == "typing" for entry in self.node.entries("assistant/typing")))


if __name__ == "__main__":
    unittest.main()
