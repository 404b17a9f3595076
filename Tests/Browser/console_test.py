"""What a person does with the console, in a real browser on the real executable.

    .venv/bin/python -m unittest discover -s Tests/Browser -p '*_test.py'

PARLEY_BIN names another folder with the executables than .build/debug.
"""

import json
import subprocess
import unittest

from console import SAID, Console, Keys, contrast, start_browser
from node import Node, converged_text, wait_for

# An answer that takes some seconds, one that does not end before the test ends it, and one that is there at once.
ANSWERS = "scripted:tokens=250,rate=40"
ENDLESS = "scripted:tokens=20000,rate=20"
AT_ONCE = "scripted:tokens=60,rate=0"

MARKDOWN = """# Tides

The **sea** rises *twice* a day, ***both*** ways; see [NOAA](https://example.org/tides) or https://example.org/x, and snake_case_names.

- spring
  - at new moon
- neap

1. one
2. two

| moon | tide |
|---|--:|
| new | high \\| low |

```python
a *b*

  c
```

> quoted"""

HOSTILE = [
    "<script>harmed = 1</script>", "<img src=x onerror='harmed = 1'>", "<b onmouseover=harmed=1>bold</b> <iframe src=javascript:harmed=1>",
    "[a](javascript:harmed=1) [b](JaVaScRiPt:harmed=1) [c](data:text/html,<script>harmed=1</script>) [d]( javascript:harmed=1)",
    "[e](vbscript:x) [f](java\tscript:harmed=1) [g](//evil.example) [h](/v1/agents) <javascript:harmed=1> <https://evil.example/\"onclick=harmed=1>",
    "![x](https://evil.example/pixel.png) ![x](javascript:harmed=1)", "[https://bank.example](https://evil.example/)",
    "```html onclick=harmed=1\n<script>harmed = 1</script>\n```", "`<script>harmed = 1</script>`",
    "| <img src=x onerror=harmed=1> | b |\n|---|---|\n| <script>harmed=1</script> | [x](javascript:harmed=1) |",
    "> > > > > > > > > > <script>harmed = 1</script>", "- - - - - - - - - - <script>harmed = 1</script>",
    "\u202ehttps://evil.example/\u202c", "[a](https://user:pass@evil.example/) <mailto:a@b.example?subject=<script>>", "https://evil.example/<script>harmed=1</script>",
]

# Keeps every text that the last answer ever showed.
WATCH = f"""
window.shown = [];
new MutationObserver(() => {{
  const answers = document.querySelectorAll("#rows .answer > .said");
  const text = answers.length ? {SAID}(answers[answers.length - 1]) : "";
  if (text !== window.shown[window.shown.length - 1]) window.shown.push(text);
}}).observe(document.querySelector("#rows"), {{ childList: true, characterData: true, subtree: true }});
"""


class ConsoleTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.driver = start_browser()
        cls.addClassCleanup(cls.driver.quit)

    def setUp(self):
        self.failed_requests_are_expected = False
        self.driver.get_log("browser")

    def tearDown(self):
        for entry in self.driver.get_log("browser"):
            # A 404 is how an agent that is not there yet answers.
            is_expected = entry["source"] == "network" and (self.failed_requests_are_expected or "404" in entry["message"])
            if entry["level"] == "SEVERE" and not is_expected:
                self.fail(f"the browser reports: {entry['message']}")

    def serve(self, executable="parley", model=ANSWERS, options=()):
        node = Node(executable, model, options=options)
        self.addCleanup(node.close)
        # Another document lets go of the node before it goes.
        self.addCleanup(self.driver.get, "about:blank")
        node.start()
        console = Console(self.driver, node.url)
        console.reset_device()
        return node, console

    def begin(self, model=ENDLESS, agent="assistant/me"):
        """A node with a running turn whose first text has arrived."""
        node, console = self.serve(model=model)
        console.open(agent)
        console.send("Tell me about the sea.")
        console.wait_state("running")
        console.wait_answer(lambda text: len(text) > 20, "the answer to begin")
        return node, console

    def ask(self, title="Release notes", model=AT_ONCE):
        """A node with an approval open."""
        node, console = self.serve("steps-agent", model)
        console.open("publisher/notes")
        console.send(title)
        console.find(".approval[data-decision=open]")
        return node, console, node.entries("publisher/notes", "approval.requested")[0]

    # MARK: Being let in

    def test_it_asks_for_the_key_of_a_server_that_has_one_and_keeps_it_over_a_reload(self):
        self.failed_requests_are_expected = True
        secret = "0123456789abcdef0123456789abcdef"
        node = Node("parley", ANSWERS)
        node.environment["PARLEY_KEYS"] = f"ann:{secret}"
        self.addCleanup(node.close)
        self.addCleanup(self.driver.get, "about:blank")
        node.start()
        console = Console(self.driver, node.url)
        self.driver.get(f"{node.url}/#assistant/me")
        for key in ("wrong" + secret, secret):
            console.find("#lock[open] #key").send_keys(key)
            console.click("#unlock button")
            if key != secret:
                wait_for("the refusal", lambda: "does not take" in console.text("#lockProblem"))
        wait_for("the lock to be gone", lambda: not console.count("#lock[open]"))
        console.send("Tell me about the sea.")
        console.wait_answer(lambda text: len(text) > 5, "an answer")
        self.driver.refresh()
        console.wait_answer(lambda text: len(text) > 5, "the answer after a reload")
        self.assertEqual(console.count("#lock[open]"), 0)
        self.assertIn("ann", console.text("#log"))

    # MARK: Reading

    def test_an_answer_arrives_token_by_token_and_is_the_log_s(self):
        node, console = self.serve()
        console.open("assistant/me")
        self.assertEqual(console.text(".empty strong"), "Nobody here yet")
        console.script(WATCH)
        console.send("Tell me about the sea.")
        console.wait_state("running")
        console.wait_state("idle")
        said = node.entries("assistant/me", "step.completed")[0]["text"]
        self.assertEqual(console.answers, [said])
        shown = [text for text in console.script("return window.shown") if text]
        self.assertGreater(len(shown), 20, "it came in pieces")
        for text in shown:
            self.assertTrue(said.startswith(text), f"the page showed what was never said: …{text[-80:]!r}")
        self.assertEqual(sorted(shown, key=len), shown, "nothing was taken back")
        console.wait_receipt("message", "applied")

    def test_a_reload_in_the_middle_neither_loses_nor_repeats(self):
        node, console = self.begin()
        for _ in range(3):
            before = self.grown(console)
            self.driver.refresh()
            console.wait_link("live")
            after = console.wait_answer(lambda text: len(text) >= len(before), "what was there before the reload")
            self.assertTrue(after.startswith(before))
        said = self.stopped(node, console)
        self.assertTrue(said.startswith(after))
        pieces = converged_text(node.entries("assistant/me", "text"), "answer")
        self.assertTrue(pieces.startswith(after) and said.startswith(pieces), "the log's pieces make the same text")
        # And once more, when all is said.
        self.driver.refresh()
        console.wait_link("live")
        self.assertEqual(console.answers, [said])

    def test_the_page_goes_on_after_kill_9(self):
        self.failed_requests_are_expected = True
        node, console = self.begin()
        console.script(WATCH)
        self.grown(console)
        node.kill()
        console.wait_link("reconnecting")
        node.start()
        console.wait_link("live")
        self.grown(console)
        said = self.stopped(node, console)
        for text in console.script("return window.shown"):
            self.assertTrue(said.startswith(text), f"the page showed what was never said: …{text[-80:]!r}")
        ended = node.entries("assistant/me", "step.completed")[0]
        self.assertGreater(ended["recovered_tokens"], 0, "the answer went on from its saved text")
        self.assertIn("Taken up again", console.text("#rows .note"))
        self.assertEqual(console.count("#rows .mine"), 2, "the message and the interrupt, once each")

    def test_the_log_goes_on_after_kill_9_entry_by_entry(self):
        self.failed_requests_are_expected = True
        node, console = self.begin()
        console.click("#raw")
        wait_for("some entries", lambda: len(console.entries) > 20)
        node.kill()
        console.wait_link("reconnecting")
        node.start()
        console.wait_link("live")
        wait_for("what came after it", lambda: "supervision" in console.texts("#rows .raw b"))
        console.click("#cancel")
        console.wait_state("idle")
        self.assertEqual(
            [entry["offset"] for entry in console.entries], [entry["offset"] for entry in node.entries("assistant/me")])

    def grown(self, console):
        """Waits until the answer has become longer, and gives what is shown."""
        length = len(console.answers[0])
        return console.wait_answer(lambda text: len(text) > length + 40, "more of the answer")

    def stopped(self, node, console):
        """Interrupts the turn, and gives what was said, which is what the page shows."""
        console.click("#interrupt")
        console.wait_state("idle")
        said = node.entries("assistant/me", "step.completed")[0]["text"]
        self.assertEqual(console.answers, [said])
        return said

    def test_the_log_shows_every_entry_and_stays_after_a_reload(self):
        node, console = self.serve(model="scripted:tokens=40,rate=200")
        node.append("assistant/me", type="message", text="Tell me about the sea.")
        node.ended("assistant/me", "turn.completed")
        console.open("assistant/me")
        console.click("#raw")
        self.assertTrue(self.driver.current_url.endswith("#assistant/me?view=raw"))
        for _ in range(2):
            entries = node.entries("assistant/me")
            wait_for("all entries", lambda: len(console.entries) == len(entries))
            self.assertEqual(console.entries, entries)
            self.driver.refresh()
            console.wait_link("live")
        # The pieces of a step's text are one row, which opens.
        pieces = [entry for entry in entries if entry["type"] == "text"]
        self.assertEqual(console.count("#rows > .raw"), len(entries) - len(pieces) + 1)
        self.assertEqual(console.text("#rows > .run b"), f"text ×{len(pieces)}")
        console.click("#rows > .run summary")
        wait_for("each piece", lambda: console.count("#rows .pieces .raw") == len(pieces))
        console.click("#rows .pieces .raw:last-child summary")
        piece = wait_for("the piece in full", lambda: console.text("#rows .pieces .raw[open] pre"))
        self.assertEqual(json.loads(piece), pieces[-1])
        console.click("#rows > .run > summary")
        console.click("#rows > .raw:last-child summary")
        shown = wait_for("the entry in full", lambda: console.text("#rows > .raw[open] > pre"))
        self.assertEqual(json.loads(shown), entries[-1])
        console.find("#match").send_keys("Receipt")
        wait_for("the receipts alone", lambda: console.texts("#rows .raw b") == ["receipt"])
        console.click("#settled")
        wait_for("the conversation", lambda: console.answers)
        self.assertTrue(self.driver.current_url.endswith("#assistant/me"))

    def test_a_long_channel_takes_bounded_room(self):
        node, console = self.serve(model=AT_ONCE)
        signals = [{"type": "signal", "name": "tick", "data": number} for number in range(3_500)]
        status, body, _ = node.request("POST", "/v1/agents/assistant/me", signals)
        self.assertEqual(status, 202, body)
        for raw in [True, False]:
            console.open("assistant/me", raw)
            wait_for("the newest entry", lambda: "3499" in console.text("#rows > :last-child"))
            self.assertEqual(console.script("return document.querySelector('#rows').childElementCount"), 3_000)
            self.assertIn("Older entries", console.text("#earlier"))

    def test_pages_that_were_left_hold_no_connection(self):
        node, console = self.serve(model=AT_ONCE)
        node.append("assistant/me", type="message", text="say: Hello.")
        readers = lambda: [line for line in node.request("GET", "/metrics")[1].decode().splitlines() if line.startswith("parley_readers ")]
        # A browser has six connections for a server, and keeps pages that were left to come back to them.
        for _ in range(7):
            console.open("assistant/me")
            console.wait_answer(lambda text: text == "Hello.", "the answer")
            # Sooner than the server ends a stream without a reader.
            wait_for("one reader", lambda: readers() == ["parley_readers 1"], timeout=25)
        self.driver.back()
        self.driver.back()
        console.wait_link("live")
        console.wait_answer(lambda text: text == "Hello.", "the answer on the page that was come back to")

    # MARK: Talking to a turn

    def test_steer_and_interrupt_show_what_became_of_them(self):
        node, console = self.begin()
        self.assertFalse(console.find("#steer").is_enabled(), "there is nothing to steer with yet")
        console.write("Keep it short.")
        console.click("#steer")
        console.wait_receipt("steer", "queued")
        self.assertEqual(console.answers[0][:8], "You said")
        console.write("Rather about lakes.")
        self.assertEqual(console.text("#interrupt"), "Interrupt with this")
        console.click("#interrupt")
        console.wait_receipt("interrupt", "applied")
        console.wait_receipt("steer", "applied")
        partial = node.entries("assistant/me", "step.completed")[0]
        self.assertEqual(partial["redirection"], "Rather about lakes.")
        self.assertEqual(console.answers[0], partial["text"], "what was written is kept")
        console.wait_answer(lambda text: len(text) > 20, "the answer that continues", index=1)
        self.assertIn("interrupted", console.text("#rows .answer .meta"))
        # Without a text it ends the turn.
        console.click("#interrupt")
        console.wait_state("idle")
        self.assertIn("Interrupted.", console.texts("#rows .note")[-1])
        self.assertEqual(console.count("#steer, #interrupt, #cancel"), 0, "no turn, nothing to interrupt")

    def test_cancel_ends_the_turn_and_a_late_one_is_rejected_with_its_reason(self):
        node, console = self.begin()
        console.click("#cancel")
        console.wait_receipt("cancel", "applied")
        console.wait_state("idle")
        self.assertIn("Cancelled.", console.texts("#rows .note")[-1])
        self.assertEqual(console.count(".answer.open"), 0)
        node.append("assistant/me", type="cancel")
        console.wait_receipt("cancel", "rejected: turn_ended")

    def test_a_message_that_queues_says_so_until_its_turn(self):
        node, console = self.begin()
        console.send("say: And the lakes?")
        console.wait_receipt("message", "queued")
        console.click("#cancel")
        console.wait_receipt("message", "applied")
        console.wait_answer(lambda text: text == "And the lakes?", "the answer to the second message")

    def test_a_message_sent_while_the_server_is_away_arrives_once(self):
        self.failed_requests_are_expected = True
        node, console = self.serve(model=AT_ONCE)
        node.append("assistant/me", type="message", text="say: Hello.")
        node.ended("assistant/me", "turn.completed")
        console.open("assistant/me")
        node.kill()
        console.wait_link("reconnecting")
        console.send("say: Still there.")
        node.start()
        console.wait_answer(lambda text: text == "Still there.", "the answer")
        self.assertEqual([entry["text"] for entry in node.entries("assistant/me", "message")], ["say: Hello.", "say: Still there."])

    def test_a_message_whose_answer_is_lost_is_said_once(self):
        self.failed_requests_are_expected = True
        node, console = self.serve(model=AT_ONCE)
        node.kill()
        # It dies when the message is in the log, and before it has said so.
        node.environment["PARLEY_FAILPOINT"] = "answer.before:1"
        node.start()
        console.open("assistant/me")
        console.send("say: Hello.")
        wait_for("the server to be gone", lambda: node.process.poll() is not None)
        del node.environment["PARLEY_FAILPOINT"]
        node.start()
        console.wait_answer(lambda text: text == "Hello.", "the answer")
        wait_for("the page to know", lambda: console.find("#send").is_enabled())
        self.assertEqual(console.text("#problem"), "")
        self.assertEqual([entry["text"] for entry in node.entries("assistant/me", "message")], ["say: Hello."])

    def test_a_failure_is_shown_with_its_message(self):
        node, console = self.serve(model=AT_ONCE)
        console.open("assistant/me")
        console.send("fail: model_refused")
        wait_for("the failure", lambda: "The turn failed" in console.text(".banner"))
        self.assertIn(node.entries("assistant/me", "turn.failed")[0]["error"]["message"], console.text(".banner"))
        self.assertIn("model_refused", console.text(".banner"))
        # And can be tried again, with the same words.
        console.click(".banner .retry")
        wait_for("the second failure", lambda: console.count(".banner") == 2)
        self.assertEqual([entry["text"] for entry in node.entries("assistant/me", "message")], ["fail: model_refused"] * 2)

    def test_what_was_written_is_not_lost_when_it_is_refused(self):
        self.failed_requests_are_expected = True
        node, console = self.serve(model=AT_ONCE)
        node.end("assistant/me")
        console.open("assistant/me", expect=["ended", "live"])
        # The page has not heard yet that it ended.
        console.script("follower.activity.isClosed = false; showControls()")
        console.write("Hello?" + Keys.ENTER)
        wait_for("what is wrong", lambda: "Not sent" in console.text("#problem"))
        self.assertEqual(console.script("return document.querySelector('#text').value"), "Hello?")

    def test_what_does_not_exist_says_so_and_offers_no_start(self):
        node, console = self.serve(model=AT_ONCE)
        console.open("assistants/me", expect=["not there"])
        self.assertIn("assistants", console.text(".empty strong"))
        self.assertIn("assistant, clerk", console.text(".empty"))
        self.assertEqual(console.count("#compose, #tabs"), 0)
        console.search("assistants/you")
        wait_for("the search to say so", lambda: console.texts("#list small") == ["no such kind"])
        self.assertIn("Did you mean assistant?", console.text(".empty"))
        console.click(".empty a")
        wait_for("the agent of a kind that there is", lambda: console.text("h1") == "assistant/me")
        console.open("/orders/43", expect=["not there"])
        self.assertIn("No channel /orders/43", console.text(".empty strong"))
        self.assertEqual(console.count(".empty a"), 0, "there is no kind orders")
        console.open("/assistant/new", expect=["not there"])
        wait_for("the agent to be offered", lambda: console.texts(".empty a") == ["Open the agent assistant/new"])
        console.open("/orders/43", expect=["not there"])
        self.assertEqual(console.count("#compose"), 0)
        # It shows as soon as it is there.
        node.request("PUT", "/v1/stream/orders/43")
        console.wait_link("live")
        console.find("#compose")

    def test_a_stalled_agent_says_why_and_what_to_do(self):
        self.failed_requests_are_expected = True
        node, console, _ = self.ask()
        node.kill()
        node.environment["PUBLISHER_FIRST_STEP"] = "sources"
        node.start()
        console.wait_link("live")
        console.click(".approve")
        console.wait_state("stalled")
        stall = node.entries("publisher/notes", "agent.stalled")[0]
        for part in [stall["reason"], stall["message"], stall["remedy"]]:
            wait_for(f"'{part}' in the banner", lambda: part in console.text(".banner"))
        wait_for("what the agent is doing", lambda: stall["message"] in console.text("#status .what"))
        # What needs the program is not offered; what goes without it is.
        wait_for("the ways out", lambda: console.count("#resume, #cancel") == 2)
        self.assertEqual(console.count("#steer, #interrupt, #text, #send"), 0)

    # MARK: Approving

    def test_an_approval_shows_the_exact_arguments_and_counts_once(self):
        # What is not seen, and what turns text round, must be seen.
        node, console, asked = self.ask("Notes\u200b for \u202eeveryone")
        # Texts as texts, and all of it exactly.
        self.assertIn("Notes\\u200b for \\u202eeveryone", console.texts(".approval .as-text"))
        self.assertIn(asked["args"]["body"], console.texts(".approval .as-text"))
        self.assertEqual(console.texts(".approval .as-text mark"), ["\\u200b", "\\u202e"])
        console.click(".approval .exact summary")
        shown = console.text(".approval .args")
        self.assertEqual(json.loads(shown), asked["args"])
        self.assertIn("Notes\\u200b for \\u202eeveryone", shown)
        self.assertIn(asked["args_sha256"], console.text(".approval .digest"))
        self.assertIn("expires in 23 h", console.text(".approval .until"))
        wait_for("the turn to wait", lambda: console.state == "waiting")
        self.assertIn("for approval of publish since", console.text("#status .what"))
        console.click(".approve")
        wait_for("the decision", lambda: console.text(".approval .verdict").startswith("Approved by anonymous at "))
        self.assertIn("applied", console.text(".approval .receipt"))
        console.wait_state("idle")
        sent = node.entries("publisher/notes", "approve")
        self.assertEqual([(entry["approval"], entry["args_sha256"]) for entry in sent], [(asked["approval"], asked["args_sha256"])])
        self.assertEqual(console.count(".approval .decide"), 0, "there is nothing left to decide")
        self.assertEqual(console.answers[-1], "Published, as anonymous approved.")
        # After a reload, and for a second person.
        self.driver.refresh()
        console.wait_link("live")
        self.assertTrue(console.text(".approval .verdict").startswith("Approved by anonymous at "))
        node.append("publisher/notes", type="deny", approval=asked["approval"])
        wait_for("the second decision", lambda: any("rejected" in text for text in console.texts(".approval .receipt")))

    def test_a_tool_call_shows_its_arguments_its_approval_and_its_result(self):
        node, console = self.serve(model=AT_ONCE)
        console.open("clerk/anna")
        # The largest whole number that a browser has exactly.
        arguments = {"path": "today.md", "text": "Water the plants.", "size": 9007199254740991}
        call = f"call: write_file {json.dumps(arguments)}"
        console.send(call)
        console.click(".approval[data-decision=open] .exact summary")
        self.assertEqual(json.loads(console.text(".approval .args")), arguments)
        self.assertEqual(console.texts(".step code"), ["write_file"])
        wait_for("the call to be asked for", lambda: console.texts(".step .took") == ["asked for"])
        console.click(".approve")
        wait_for("the end of the turn", lambda: node.entries("clerk/anna", "turn.completed"))
        result = node.entries("clerk/anna", "step.completed")[-2]["result"]
        wait_for("the call and what became of it as one row", lambda: console.count(".step[data-is=done]") == 1)
        console.click(".step summary")
        self.assertEqual(json.loads(console.texts(".step dd")[0]), arguments)
        self.assertEqual(console.texts(".step dd")[1], result)
        wait_for("the answer", lambda: result in console.answers[-1])
        # Denied, it is never done, and the row says so.
        console.send(call)
        console.click(".approval[data-decision=open] .deny")
        wait_for("the call to be settled", lambda: console.texts(".step .took")[1:] == ["not run"])

    def test_a_denial_carries_its_reason(self):
        node, console, _ = self.ask()
        console.find(".approval input").send_keys("The date is wrong.")
        console.click(".deny")
        wait_for("the decision", lambda: console.text(".approval .verdict").startswith("Denied by anonymous"))
        self.assertIn("The date is wrong.", console.text(".approval .verdict"))
        self.assertEqual(node.entries("publisher/notes", "approval.decided")[0]["reason"], "The date is wrong.")
        console.wait_state("idle")

    def test_a_decision_made_elsewhere_shows(self):
        node, console, asked = self.ask()
        node.append("publisher/notes", type="approve", approval=asked["approval"], args_sha256="0" * 64)
        wait_for("the refusal", lambda: "rejected: arguments_changed" in console.text(".approval .receipt"))
        self.assertTrue(console.find(".approve").is_enabled(), "the question is still open")
        node.append("publisher/notes", type="approve", approval=asked["approval"], args_sha256=asked["args_sha256"])
        wait_for("the decision", lambda: console.text(".approval .verdict").startswith("Approved by"))

    def test_steps_show_their_results(self):
        node, console, _ = self.ask()
        self.assertEqual(console.text(".step code"), "changes")
        console.click(".step summary")
        result = next(entry["result"] for entry in node.entries("publisher/notes", "step.completed") if entry["step"] == "changes")
        self.assertEqual(json.loads(console.text(".step dd pre")), result)

    # MARK: Finding agents

    def test_search_and_chips_find_agents(self):
        node, console = self.serve("steps-agent", AT_ONCE, ["--idle", "0"])
        for name in ["assistant/anna", "assistant/berta", "publisher/notes"]:
            node.append(name, type="message", text="Hello")
        node.end("assistant/done")
        expected = {"assistant/anna": "idle", "assistant/berta": "idle", "publisher/notes": "waiting", "assistant/done": "closed"}
        wait_for("the states", lambda: {name: node.status(name)["state"] for name in expected} == expected)
        console.open()
        names = lambda: console.texts("#list .name")
        wait_for("all agents", lambda: sorted(names()) == ["assistant/anna", "assistant/berta", "assistant/done", "publisher/notes"])
        self.assertEqual(dict(zip(names(), console.texts("#list small"))), expected)
        self.assertEqual(console.texts("#chips button"), ["all4", "idle2", "waiting1", "closed1"], "what there is, with how many")
        # The one that did something last comes first.
        node.append("assistant/anna", type="signal", name="tick")
        wait_for("the newest to be first", lambda: names()[0] == "assistant/anna")
        for state in ["waiting", "closed", "idle"]:
            console.click(f"#chips button[value={state}]")
            wait_for(f"those that are {state}", lambda: sorted(names()) == [name for name in expected if expected[name] == state])
        self.assertEqual(console.texts("#chips [aria-pressed=true]"), ["idle2"])
        console.search("BERT")
        wait_for("the one that is sought", lambda: names() == ["assistant/berta"])
        console.press(Keys.ENTER)
        wait_for("it to be open", lambda: console.text("h1") == "assistant/berta")
        # A new one is opened by its name, and is in the list once it has been spoken to.
        console.click("#chips button[value='']")
        console.search("assistant/carla")
        wait_for("the offer to open it", lambda: console.texts("#list small") == ["open"])
        console.press(Keys.ENTER)
        console.wait_link("new")
        console.send("say: Hello, Carla.")
        console.wait_answer(lambda text: text == "Hello, Carla.", "the answer")
        wait_for("it in the list", lambda: "assistant/carla" in names())

    def test_a_long_list_comes_in_pages(self):
        node, console = self.serve(model=AT_ONCE)
        for number in range(130):
            node.end(f"assistant/number-{number}")
        console.open()
        wait_for("the first page", lambda: console.count("#list li") == 100)
        console.click("#more")
        wait_for("the second page", lambda: console.count("#list li") == 130)
        self.assertEqual(console.count("#more"), 0)
        console.open()
        wait_for("the first page", lambda: console.count("#list li") == 100)
        console.search("number-12")
        wait_for("what stands on later pages, too", lambda: console.count("#list li") == 11)

    # MARK: Keyboard, devices, looks

    def test_the_keyboard_does_everything(self):
        node, console = self.serve()
        for name in ["assistant/a", "assistant/b", "assistant/c"]:
            node.append(name, type="message", text="say: Hello.")
            node.ended(name, "turn.completed")
        # Newest first.
        console.open("assistant/c")
        wait_for("the list", lambda: console.texts("#list .name") == ["assistant/c", "assistant/b", "assistant/a"])
        console.wait_state("idle")
        console.press(Keys.ESCAPE)
        self.assertNotEqual(console.focused, "text", "out of the field, keys are shortcuts")
        console.press("j", "j", "j", "k", Keys.ENTER)
        wait_for("the agent below", lambda: console.text("h1") == "assistant/b")
        console.wait_link("live")
        console.press(Keys.ESCAPE, "?")
        wait_for("the help", lambda: "Keyboard" in console.text("#keys h2"))
        console.press(Keys.ESCAPE)
        wait_for("the help to be gone", lambda: not console.text("#keys h2"))
        console.press("r")
        wait_for("the log", lambda: console.count("#rows .raw") > 0)
        console.press(Keys.ESCAPE, "r")
        wait_for("the conversation", lambda: console.answers)
        console.press(Keys.ESCAPE, "/")
        self.assertEqual(console.focused, "search")
        console.press(*"assistant/c", Keys.ENTER)
        wait_for("the agent by its name", lambda: console.text("h1") == "assistant/c")
        console.wait_link("live")
        console.press(Keys.ESCAPE, "m")
        self.assertEqual(console.focused, "text")
        console.press(*"two", (Keys.SHIFT, Keys.ENTER), *"lines", Keys.ENTER)
        wait_for("the message", lambda: node.entries("assistant/c", "message")[-1]["text"] == "two\nlines")
        console.wait_state("running")
        console.press(*"shorter", (Keys.CONTROL, Keys.ENTER))
        console.wait_receipt("steer", "")
        self.assertEqual(node.entries("assistant/c", "steer")[-1]["text"], "shorter")

    def test_escape_interrupts_and_can_be_taken_back(self):
        node, console = self.begin()
        console.script(
            """
            window.offers = [];
            const offer = document.querySelector("#undo");
            new MutationObserver(() => { if (!offer.hidden) window.offers.push(offer.textContent); }).observe(offer, { attributes: true });
            """)
        # Both at once: how long a browser takes for two requests is not what is tested.
        console.press(Keys.ESCAPE, Keys.ESCAPE)
        self.assertEqual(console.count("#undo"), 0)
        console.write("Rather about lakes.")
        console.press(Keys.ESCAPE)
        console.wait_receipt("interrupt", "applied")
        interrupts = node.entries("assistant/me", "interrupt")
        self.assertEqual([entry.get("text") for entry in interrupts], ["Rather about lakes."], "the one that was taken back was never sent")
        offers = console.script("return window.offers")
        self.assertEqual(["going on with what you wrote" in offer for offer in offers], [False, True])

    def test_a_phone_shows_all_of_it(self):
        node, console, _ = self.ask("A title that is long enough to be wider than any phone is, and then some more of it", ENDLESS)
        for width, height in [(390, 844), (320, 568)]:
            console.device(width, height, scale=2, mobile=True)
            for raw in [False, True]:
                console.open("publisher/notes", raw)
                wait_for("the entries", lambda: console.count("#rows > *") > 2)
                self.check_touch(console, width)
            console.open("publisher/notes")
            console.find(".approval .approve")
            self.assertEqual(console.count("#list"), 0, "the list is put away")
            console.click("#menu")
            wait_for("the list", lambda: console.count("#list a") == 1)
            self.check_touch(console, width)
            console.click("#list a")
            wait_for("the list to be put away again", lambda: console.count("#list") == 0)
        console.click(".deny")
        wait_for("the decision", lambda: console.text(".approval .verdict").startswith("Denied"))

    def check_touch(self, console, width):
        """Nothing is wider than the screen, and whatever is touched is large enough for a finger."""
        self.assertLessEqual(console.script("return document.documentElement.scrollWidth"), width)
        self.assertFalse(console.script("const log = document.querySelector('#log'); return log.scrollWidth > log.clientWidth"))
        small = console.script(
            """
            return [...document.querySelectorAll("button, a, input, textarea, summary")].filter(node => node.checkVisibility())
              .map(node => [node.id || node.className || node.textContent, node.getBoundingClientRect()])
              .filter(([, box]) => box.height < 40 || box.width < 40 || box.right > innerWidth + 1 || box.left < -1)
              .map(([name, box]) => `${name} ${box.width}x${box.height} at ${box.left}`)
            """)
        self.assertEqual(small, [])

    def test_text_is_legible_by_day_and_by_night(self):
        node, console, _ = self.ask(model=ENDLESS)
        papers = []
        for scheme in ["light", "dark"]:
            console.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
            for selector in [
                ".mine .said", ".mine .meta", ".receipt", ".step .brief", ".answer .said", ".approval h2", ".approval .until",
                ".approval .as-text", ".approval dt small", ".approval .digest", ".approve", ".deny", "#list .name", "#list small", "#chips button", "#send",
                "#cancel", "#status b", "#status .what", "#link",
            ]:
                text, behind = console.colours(selector)
                self.assertGreaterEqual(contrast(text, behind), 4.5, f"{selector}, {scheme}: {text} on {behind}")
            papers.append(console.colours("#rows")[1])
            self.assertEqual(console.script("return document.getAnimations().length"), 0, "nothing moves for those who ask for that")
        light, dark = papers
        self.assertGreater(sum(light), 700)
        self.assertLess(sum(dark), 120)

    def test_what_has_no_text_has_a_name(self):
        _, console, _ = self.ask()
        nameless = console.script(
            """
            return [...document.querySelectorAll("button, input, textarea, a, dialog, [role=group], [role=log]")]
              .filter(node => !(node.getAttribute("aria-label") || node.getAttribute("aria-labelledby") || node.textContent.trim()))
              .map(node => node.outerHTML)
            """)
        self.assertEqual(nameless, [])

    def test_nothing_stands_in_the_way_of_keyboards_and_screen_readers(self):
        node, console, _ = self.ask(model=ENDLESS)
        node.append("assistant/me", type="message", text=f"say: {MARKDOWN}")
        node.append("assistant/fails", type="message", text="fail: model_refused")
        node.request("PUT", "/v1/stream/orders/42")
        node.request("POST", "/v1/stream/orders/42", [{"state": "paid"}])
        for width, mobile in [(1280, False), (390, True)]:
            console.device(width, 860, mobile=mobile)
            for scheme in ["light", "dark"]:
                console.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
                for agent, view, shown in [
                    ("", "", ".home .card"), ("publisher/notes", "", ".approval"), ("publisher/notes", "raw", ".raw"),
                    ("publisher/notes", "trace", ".fall"), ("publisher/notes", "audit", ".audit"), ("assistant/me", "about", ".about"),
                    ("assistant/me", "", ".answer h2"), ("assistant/fails", "", ".banner"), ("/orders/42", "", ".raw"),
                ]:
                    console.open(agent, view=view)
                    console.find(f"#rows {shown}")
                    self.assertEqual(console.violations(), [], f"{agent or 'home'} {view}, {scheme}, {width} pixels wide")
        console.device(1280, 860)
        console.open("assistant/me", view="about")
        console.click(".delete")
        console.find("#remove[open]")
        self.assertEqual(console.violations(), [], "the question before an agent is deleted")

    # MARK: Home, and what else there is of an agent

    def test_home_shows_what_waits_for_a_person_what_failed_and_what_there_is(self):
        node, console, _ = self.ask(model=AT_ONCE)
        node.append("assistant/fails", type="message", text="fail: model_refused")
        node.ended("assistant/fails", "turn.failed")
        node.request("PUT", "/v1/stream/orders/42")
        console.open()
        sections = lambda: {title.rstrip("0123456789"): title for title in console.texts(".home h2")}
        wait_for("all sections", lambda: {"Waits for you", "Failed", "Kinds of agents", "Channels without an agent"} <= set(sections()))
        self.assertEqual(sections()["Waits for you"], "Waits for you1")
        self.assertIn("Approve publish?", console.text("a.card[data-state=waiting] .says"))
        self.assertIn("model_refused", console.text("a.card.failed .says"))
        self.assertIn("/orders/42", console.texts(".home .name"))
        self.assertIn("clerk", console.texts(".home .kind .name"))
        self.assertIn("current_time, write_file", " ".join(console.texts(".home .kind .says")))
        console.click("a.card[data-state=waiting]")
        console.click(".approval .approve")
        wait_for("the decision", lambda: console.text(".approval .verdict").startswith("Approved"))
        console.click("#home")
        wait_for("nothing to wait any more", lambda: "Nothing waits" in console.text(".home .note"))
        console.click(".home button[aria-label='New clerk']")
        wait_for("a new one of that kind", lambda: console.text("h1").startswith("clerk/"))
        console.wait_link("new")

    def test_home_shows_what_waits_for_a_person_also_while_the_turn_runs(self):
        node, console, _ = self.ask(model="scripted:rate=4")
        # Its announcement takes half a minute more.
        listed = json.loads(node.request("GET", "/v1/agents?details=true")[1])["agents"][0]
        self.assertEqual((listed["state"], listed["waiting_for"][0]["name"]), ("running", "publish"))
        console.open()
        wait_for("the approval", lambda: "Approve publish?" in console.text("a.card .says"))
        self.assertEqual(console.texts(".home h2")[0], "Waits for you1")

    def test_a_failure_is_dismissed_until_the_next_one(self):
        node, console = self.serve(model=AT_ONCE)
        node.append("assistant/fails", type="message", text="fail: model_refused")
        node.ended("assistant/fails", "turn.failed")
        console.open()
        console.click(".home button[aria-label='Dismiss the failure of assistant/fails']")
        wait_for("it to be gone", lambda: not console.count(".home a.card.failed"))
        console.open()
        wait_for("the page", lambda: console.count(".home .kind") == 2)
        self.assertEqual(console.count(".home a.card.failed"), 0, "it stays dismissed")
        node.append("assistant/fails", type="message", text="fail: model_refused")
        wait_for("the next failure", lambda: console.count(".home a.card.failed") == 1)

    def test_the_address_of_an_agent_s_channel_leads_to_the_agent(self):
        node, console = self.serve(model=AT_ONCE)
        console.open("/assistant/me", expect=["not there"])
        console.click(".empty a")
        wait_for("the agent", lambda: console.text("h1") == "assistant/me")
        console.open("/agents/assistant/you", expect=["new"])
        self.assertEqual(console.text("h1"), "assistant/you")

    def test_an_approval_that_was_decided_is_a_line_and_what_was_asked_is_behind_it(self):
        node, console, asked = self.ask(model=AT_ONCE)
        tall = console.find(".approval").size["height"]
        console.click(".approval .approve")
        wait_for("the decision", lambda: console.text(".approval .verdict").startswith("Approved"))
        self.assertEqual(console.text(".approval h2"), "publish")
        self.assertLess(console.find(".approval").size["height"], tall / 2)
        self.assertEqual(console.count(".approval .as-text, .approval .digest"), 0)
        console.click(".approval .asked > summary")
        self.assertIn(asked["args"]["body"], console.texts(".approval .as-text"))
        self.assertIn(asked["args_sha256"], console.text(".approval .digest"))

    def test_the_trace_of_an_open_turn_says_so_once_and_for_how_long(self):
        node, console, _ = self.ask(model=AT_ONCE)
        console.click("#trace")
        wait_for("the turn", lambda: console.count(".trace .meta") == 1)
        words = console.texts(".trace .meta span")
        self.assertEqual(words.count("open"), 1, words)

    def test_offsets_are_there_in_full(self):
        node, console = self.serve(model=AT_ONCE)
        console.open("assistant/me")
        console.send("say: hello")
        node.ended("assistant/me", "turn.completed")
        console.click("#raw")
        wait_for("the entries", lambda: console.count("#rows .raw .at") > 3)
        offset = node.entries("assistant/me")[0]["offset"]
        self.assertEqual(console.script("return document.querySelector('#rows .raw .at').title"), offset)
        console.click("#about")
        wait_for("the end offset", lambda: any(len(text) == 16 and text.startswith("000") for text in console.texts(".about .facts dd")))

    def test_a_phone_offers_what_a_screen_offers_while_a_turn_runs(self):
        node, console = self.begin()
        console.device(320, 568, scale=2, mobile=True)
        wait_for("all controls", lambda: console.count("#json, #asCurl, #steer, #interrupt, #cancel, #send") == 6)
        self.check_touch(console, 320)

    def test_the_trace_shows_when_what_ran(self):
        node, console, asked = self.ask(model=AT_ONCE)
        node.append("publisher/notes", type="approve", approval=asked["approval"])
        node.ended("publisher/notes", "turn.completed")
        console.click("#trace")
        trace = json.loads(node.request("GET", "/v1/agents/publisher/notes/trace")[1])["turns"][0]
        wait_for("its state", lambda: console.text(".trace .is") == "completed")
        names = []
        def collect(steps):
            for step in steps:
                names.append(step["step"].split("/")[-1])
                collect(step.get("steps", []))
        collect(trace["steps"])
        self.assertEqual(console.texts(".fall .label code"), names)
        places = console.script(
            "return [...document.querySelectorAll('details.fall .bar')].map(bar => [parseFloat(bar.style.left), parseFloat(bar.style.width)])")
        self.assertEqual(places, sorted(places, key=lambda place: place[0]), "later steps begin further right")
        self.assertTrue(all(0 <= left and left + width <= 101 for left, width in places), places)
        console.click("details.fall[data-key$=' publish'] summary")
        self.assertIn("approved, by anonymous", console.text(".fall[open] dl"))
        self.assertIn("approve", console.text(".fall.control"))

    def test_the_audit_shows_who_did_what_newest_first(self):
        node, console, asked = self.ask(model=AT_ONCE)
        node.append("publisher/notes", type="approve", approval=asked["approval"], args_sha256="0" * 64)
        node.append("publisher/notes", type="approve", approval=asked["approval"])
        node.ended("publisher/notes", "turn.completed")
        console.click("#audit")
        wait_for("all records", lambda: console.count(".audit") == 4)
        self.assertEqual(console.texts(".audit b"), ["approve", "approve", "approval", "message"])
        self.assertEqual(console.texts(".audit .is")[1], "rejected: arguments_changed")
        console.click(".audit summary")
        self.assertEqual(json.loads(console.text(".audit[open] pre"))["type"], "approve")

    def test_the_agent_s_tab_shows_its_definition_and_deletes_it(self):
        self.failed_requests_are_expected = True
        node, console = self.serve(model=AT_ONCE)
        console.open("clerk/anna")
        console.send("say: Hello.")
        console.wait_answer(lambda text: text == "Hello.", "the answer")
        console.click("#about")
        wait_for("the instructions", lambda: console.text(".about .boxed") == "You keep notes.")
        self.assertIn("current_time, write_file", console.text(".about .facts:has(dt:nth-of-type(2))") + " ".join(console.texts(".about dd")))
        console.click(".delete")
        console.click("#removeNot")
        self.assertEqual(node.status("clerk/anna")["state"], "idle")
        console.click(".delete")
        console.click("#removeNow")
        console.wait_link("deleted")
        self.assertIn("deleted", console.text(".empty strong"))
        self.assertEqual(node.request("GET", "/v1/agents/clerk/anna")[0], 410)
        self.assertEqual(console.count("#compose"), 0)
        console.click("#settled")
        console.click(".empty .anew")
        console.wait_link("live")
        console.send("say: Hello again.")
        console.wait_answer(lambda text: text == "Hello again.", "the answer of the new one")

    def test_the_state_that_a_program_saved_shows(self):
        node, console = self.serve("steps-agent", AT_ONCE)
        node.append("stepper/one", type="message", data={"steps": 1})
        console.open("stepper/one", view="about")
        console.find(".about")
        saved = json.loads(node.request("GET", "/v1/agents/stepper/one/state")[1]).get("state")
        self.assertIn("in Swift" if not saved else list(saved)[0], " ".join(console.texts(".about")))

    def test_plain_channels_are_followed_and_appended_to(self):
        node, console = self.serve(model=AT_ONCE)
        node.request("PUT", "/v1/stream/orders/4%202")
        node.request("POST", "/v1/stream/orders/4%202", [{"state": "paid"}, 12345678901234567890])
        console.open()
        console.click(".home a.card[data-key='/orders/4 2']")
        wait_for("what is there", lambda: console.texts("#rows .raw .brief") == ['{"state":"paid"}', "12345678901234567890"])
        console.send('[{"state": "sent"}, 0.10]')
        wait_for("what was appended", lambda: console.texts("#rows .raw .brief")[2:] == ['{"state":"sent"}', "0.10"])
        console.write("{no json" + Keys.ENTER)
        wait_for("the refusal", lambda: "no JSON" in console.text("#problem"))
        self.assertEqual(console.script("return document.querySelector('#text').value"), "{no json")
        self.driver.refresh()
        wait_for("all of it after a reload", lambda: console.count("#rows .raw") == 4)
        node.request("POST", "/v1/stream/orders/4%202", None, {"Stream-Closed": "true"})
        console.wait_link("ended")
        self.assertFalse(console.find("#send").is_enabled())

    # MARK: Saying more

    def test_a_message_may_be_data_and_is_sent_as_it_was_written(self):
        node, console = self.serve("steps-agent", AT_ONCE)
        console.open("stepper/one")
        console.click("#json")
        console.write("{" + Keys.ENTER)
        wait_for("the refusal", lambda: "no JSON" in console.text("#problem"))
        self.assertEqual(node.entries("stepper/one"), [])
        console.script("document.querySelector('#text').value = ''")
        console.send('{"steps": 3, "exact": 12345678901234567890}')
        wait_for("the message", lambda: node.entries("stepper/one", "message"))
        self.assertEqual(node.entries("stepper/one", "message")[0]["data"], {"steps": 3, "exact": 12345678901234567890})

    def test_what_is_written_is_copied_as_a_command(self):
        node, console = self.serve(model=AT_ONCE)
        self.driver.execute_cdp_cmd("Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]})
        console.open("assistant/me")
        console.write("say: It's $HOME `ls` \\ \"quoted\"")
        console.click("#asCurl")
        wait_for("it to be copied", lambda: console.text("#asCurl") == "Copied")
        command = self.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        wait_for("the message", lambda: node.entries("assistant/me", "message"))
        self.assertEqual(node.entries("assistant/me", "message")[0]["text"], "say: It's $HOME `ls` \\ \"quoted\"")

    # MARK: Markdown

    def test_answers_are_markdown_and_their_source_is_a_click_away(self):
        node, console = self.serve(model=AT_ONCE)
        console.open("assistant/me")
        node.append("assistant/me", type="message", text=f"say: {MARKDOWN}")
        node.ended("assistant/me", "turn.completed")
        wait_for("the end", lambda: console.count(".answer .source-of"))
        for selector, texts in {
            ".prose h2": ["Tides"], ".prose strong": ["sea", "both"], ".prose em": ["twice", "both"], ".prose > ul > li": ["spring\nat new moon", "neap"],
            ".prose ol li": ["one", "two"], ".prose th": ["moon", "tide"], ".prose td": ["new", "high | low"], ".prose pre": ["a *b*\n\n  c"],
            ".prose blockquote": ["quoted"], ".prose a": ["NOAA", "https://example.org/x"],
        }.items():
            self.assertEqual([text.strip() for text in console.script(
                "return [...document.querySelectorAll(arguments[0])].map(node => node.innerText)", selector)], texts, selector)
        console.click(".source-of")
        self.assertEqual(console.text(".answer .prose pre"), MARKDOWN)
        console.click(".source-of")
        self.assertEqual(console.count(".answer .prose h2"), 1)

    def test_markdown_made_to_harm_is_text(self):
        node, console = self.serve(model=AT_ONCE)
        console.open("assistant/me")
        for hostile in HOSTILE:
            count = len(console.answers)
            console.script("window.harmed = undefined")
            node.append("assistant/me", type="message", text=f"say: {hostile}")
            wait_for("the answer", lambda: len(console.answers) > count and console.count(".answer .source-of") > count)
            self.assertIsNone(console.script("return window.harmed ?? null"), hostile)
        made = set(console.script("return [...document.querySelectorAll('.prose *')].map(node => node.tagName.toLowerCase())"))
        self.assertLessEqual(made, {
            "p", "a", "span", "small", "code", "pre", "div", "strong", "em", "del", "ul", "ol", "li", "blockquote", "h2", "h3", "h4", "h5", "h6", "hr",
            "table", "thead", "tbody", "tr", "th", "td"})
        links = console.script("return [...document.querySelectorAll('.prose a')].map(link => [link.href, link.rel, link.target])")
        self.assertTrue(links)
        for href, rel, target in links:
            self.assertRegex(href, "^(https?://|mailto:)")
            self.assertEqual((rel, target), ("noopener noreferrer nofollow", "_blank"))
        self.assertIn("(evil.example)", console.texts(".prose .place")[0].strip())
        attributes = set(console.script("return [...document.querySelectorAll('.prose *')].flatMap(node => node.getAttributeNames())"))
        self.assertLessEqual(attributes, {"href", "rel", "target", "title", "class", "tabindex", "role", "aria-label", "scope", "start"})

    def test_a_long_answer_is_laid_out_in_time_however_it_is_written(self):
        _, console = self.serve(model=AT_ONCE)
        console.open("assistant/me")
        for unit in ["[", "*", "`", "![](", "<", "**a", "_a_ ", "> ", "- ", "# ", "| ", "|-", "https://", "\\", "~~", " ", "1. a\n", "|a|b|\n|-|-|\n", "```\n"]:
            spent = console.script(
                "const begin = performance.now(); markdown.render(arguments[0].repeat(Math.ceil(60000 / arguments[0].length)) + 'x');"
                "return performance.now() - begin", unit)
            self.assertLess(spent, 3_000, f"{unit!r} repeated")


if __name__ == "__main__":
    unittest.main()
