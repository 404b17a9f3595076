"""parley.js in a real browser: over its WebSocket, over the server's death, where no WebSocket gets through, and where it is refused."""

import json
import unittest

from console import start_browser
from node import ROOT, Node, wait_for

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

# Makes a client and has `tell` follow with it: what came, and how it ended.
CLIENT = """
const [options, agent, end] = arguments;
const channel = `agents/${agent}`;
window.told = {};
async function tell(name, follow) {
  const entries = [];
  told[name] = { entries };
  try {
    for await (const entry of follow) {
      entries.push(entry);
      if (follow.isEnough?.(entry)) break;
    }
    told[name].reason = follow.reason;
  } catch (error) {
    Object.assign(told[name], { status: error.status, code: error.code });
  }
}
const failed = error => ({ status: error.status, code: error.code });
import("/parley.js").then(async ({ Parley }) => {
  const parley = window.parley = new Parley(options);
  %s
}).then(end, error => end({ problem: String(error) }));
"""

REFUSED = CLIENT % """
  await Promise.all([tell("tree", parley.tree(channel)), tell("follow", parley.follow(channel))]);
  told.send = await parley.send(agent, "Hello.").catch(failed);
  return told;
"""

# The server's words, as docs/socket.md has them, from a server that has such a tree; everything else is the client's.
TREE = CLIENT.replace("new Parley(options)", "new Parley({ WebSocket: Scripted })") % """
  await tell("tree", parley.tree(channel));
  return told.tree;
""" + """
class Scripted {
  static count = 0;
  constructor() { setTimeout(() => this.onopen()); }
  close() {}
  send(text) {
    const { op, ref, cursor } = JSON.parse(text);
    if (op !== "tree") return;
    const say = message => setTimeout(() => this.onmessage({ data: JSON.stringify({ ref, ...message }) }));
    const error = (status, code) => ({ error: { status, code } });
    const secret = { channel: "agents/a/secret", cursor: "C1", ended: true, reason: "failed", ...error(403, "forbidden") };
    if (Scripted.count++ === 0) {
      say({ channel, cursor: "C1", entries: [{ offset: "1", type: "emit" }], offset: "1", up_to_date: true });
      say({ channel: "agents/a/full", ended: true, reason: "refused", ...error(429, "tree_full") });
      say({ channel: "agents/a/many", ended: true, reason: "refused", ...error(429, "too_many_channels") });
      say(secret);
      setTimeout(() => this.onclose(), 50);
    } else {
      told.cursor = cursor;
      say(secret);
      say({ channel, cursor: "C2", entries: [{ offset: "2", type: "emit", channel: "agents/a/secret" }], offset: "2", up_to_date: true });
      say({ channel, cursor: "C2", ended: true, reason: "closed" });
      say({ ended: true, reason: "closed" });
    }
  }
}
"""

DELETED = CLIENT % """
  const follow = parley.follow(channel);
  const following = tell("follow", follow);
  while (!follow.isUpToDate) await new Promise(resolve => setTimeout(resolve, 20));
  await fetch(`/v1/${channel}`, { method: "DELETE" });
  await following;
  await tell("late", parley.follow(channel));
  return told;
"""

NOTHING_SAVED = CLIENT % """
  const first = (name, options) => {
    const follow = parley.follow(channel, options);
    return tell(name, Object.assign(follow, { isEnough: () => true }));
  };
  await first("undefined", { offset: undefined, view: undefined, signal: undefined, onEphemeral: undefined });
  await first("null", { offset: localStorage.getItem("nothing"), view: null });
  await first("none", null);
  const saying = { key: localStorage.getItem("nothing"), id: undefined };
  told.sent = [await parley.send(agent, "one", saying), await parley.send(agent, "two", saying)];
  return told;
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

    def test_an_agent_is_followed_before_its_first_message(self):
        for blocked in [False, True]:
            with self.subTest(blocked=blocked):
                agent = f"assistant/early-{blocked}"
                self.browser.execute_script(FOLLOW, agent, {"blocked": blocked})
                # As the README has it the other way round: from this page, and from elsewhere.
                wait_for("it to have asked", lambda: self.browser.execute_script("return performance.getEntriesByType('resource').length") or not blocked)
                if blocked:
                    self.browser.execute_script("parley.send(arguments[0], 'say: Hello.')", agent)
                else:
                    self.send(agent, "say: Hello.")
                wait_for("the end of the turn", lambda: self.seen().get("done"))
                self.assertIsNone(self.seen().get("failure"))
                self.check(agent, self.seen()["entries"])

    def test_an_impossible_channel_is_not_waited_for(self):
        for blocked in [False, True]:
            self.browser.execute_script(FOLLOW, "assistants/me", {"blocked": blocked})
            failure = wait_for("the refusal", lambda: self.seen().get("failure"))
            self.assertIn("there is no agent kind 'assistants'; expected one of assistant, clerk", failure)

    def test_the_chat_page_of_the_examples_talks_and_survives_a_kill(self):
        self.node.kill()
        self.node.options += ["--public", str(ROOT / "Examples" / "Chat")]
        self.node.start()
        self.browser.get(f"{self.node.url}/chat.html")
        answers = lambda: self.browser.execute_script("return [...document.querySelectorAll('.answer')].map(node => node.textContent)")
        self.browser.find_element("css selector", "#text").send_keys("Tell me about the sea.\n")
        wait_for("some of the answer", lambda: answers() and len(answers()[0]) > 40)
        self.node.kill()
        self.node.start()
        said = self.node.ended("assistant/me", "step.completed")["text"]
        wait_for("the answer", lambda: answers() == [said])
        self.assertEqual(self.browser.execute_script("return document.querySelector('.me').textContent"), "Tell me about the sea.")
        self.browser.refresh()
        wait_for("the same after a reload", lambda: answers() == [said])

    # MARK: What is refused, and what ends

    def tell(self, script, agent, **options):
        told = self.browser.execute_async_script(script, options, agent)
        self.assertNotIn("problem", told)
        return told

    def require_key(self):
        """Restarts the node with a key, and returns the key."""
        secret = "0123456789abcdef0123456789abcdef"
        self.node.kill()
        self.node.environment["PARLEY_KEYS"] = f"ann:{secret}"
        self.node.start()
        return secret

    def assert_unauthorized(self, told):
        for what in ("tree", "follow", "send"):
            self.assertEqual((told[what].get("status"), told[what].get("code")), (401, "unauthorized"), what)

    def test_it_throws_when_its_token_is_refused_or_missing(self):
        self.require_key()
        for options in ({"token": "wrong"}, {}):
            for transport in ("socket", "auto"):
                with self.subTest(transport=transport, **options):
                    self.assert_unauthorized(self.tell(REFUSED, "assistant/me", transport=transport, **options))

    def test_it_throws_when_its_token_ends_on_the_way(self):
        bearer = {"Authorization": f"Bearer {self.require_key()}"}
        self.node.request("POST", "/v1/agents/assistant/me", {"type": "message", "text": "Hello."}, bearer)
        body = {"name": "bob", "allow": ["agents/**:read,append"], "expires_in": 5}
        token = json.loads(self.node.request("POST", "/v1/tokens", body, bearer)[1])["token"]
        told = self.tell(REFUSED, "assistant/me", transport="socket", token=token)
        self.assert_unauthorized(told)
        self.assertTrue(told["tree"]["entries"] and told["follow"]["entries"], "until then they were followed")

    def test_it_says_which_channels_a_tree_goes_on_without(self):
        told = self.tell(TREE, "a/root")
        self.assertEqual(
            [(entry["channel"], entry["type"], entry.get("reason"), entry.get("error", {}).get("code")) for entry in told["entries"]],
            [
                ("agents/a/root", "emit", None, None),
                ("agents/a/full", "ended", "refused", "tree_full"),
                ("agents/a/many", "ended", "refused", "too_many_channels"),
                # Once, though it fails on the next connection, too.
                ("agents/a/secret", "ended", "failed", "forbidden"),
                # Whatever channel it names itself.
                ("agents/a/root", "emit", None, None),
            ])
        self.assertEqual(told["reason"], "closed")
        self.assertEqual(self.browser.execute_script("return told.cursor"), "C1")

    def test_a_deleted_channel_ends_alike_on_both_transports(self):
        for transport in ("socket", "stream"):
            with self.subTest(transport=transport):
                agent = f"assistant/deleted-{transport}"
                self.send(agent, "Hello.")
                self.node.ended(agent, "turn.completed")
                told = self.tell(DELETED, agent, transport=transport)
                self.assertEqual(told["follow"].get("reason"), "deleted")
                self.assertTrue(told["follow"]["entries"])
                self.assertEqual((told["late"].get("status"), told["late"].get("code")), (410, "agent_deleted"))

    def test_what_was_never_saved_is_no_option(self):
        for transport in ("socket", "stream"):
            with self.subTest(transport=transport):
                agent = f"assistant/first-{transport}"
                self.send(agent, "Hello.")
                told = self.tell(NOTHING_SAVED, agent, transport=transport)
                first = self.node.entries(agent)[0]["offset"]
                for name in ("undefined", "null", "none"):
                    self.assertEqual([entry["offset"] for entry in told[name]["entries"]], [first], name)
                self.assertEqual([sent["replayed"] for sent in told["sent"]], [False, False])


if __name__ == "__main__":
    unittest.main()
