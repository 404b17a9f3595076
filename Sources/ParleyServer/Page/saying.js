// Being let in.

// A server with keys answers nobody without one. What is given stays in this tab.
const keyName = "parley-key";
let asked;

async function request(url, options = {}) {
  for (;;) {
    const shown = sessionStorage.getItem(keyName);
    const headers = shown ? { ...options.headers, Authorization: `Bearer ${shown}` } : options.headers;
    const answer = await fetch(url, { ...options, headers });
    if (answer.status !== 401) return answer;
    // Another request may have been given a new one meanwhile.
    if (sessionStorage.getItem(keyName) === shown) await (asked ??= askForKey(shown));
  }
}

function askForKey(refused) {
  $("lockProblem").textContent = refused ? "The server does not take this key or token: it is wrong, or has expired." : "";
  $("key").value = "";
  if (!$("lock").open) $("lock").showModal();
  return new Promise(done => {
    $("unlock").onsubmit = event => {
      event.preventDefault();
      sessionStorage.setItem(keyName, $("key").value.trim());
      asked = undefined;
      $("lock").close();
      done();
    };
  });
}

// Without a key there is nothing to go back to.
$("lock").addEventListener("cancel", event => event.preventDefault());


// Saying something.

// The keys of entries whose fate is not known: said again they have the same key, and are in the log once.
const unanswered = new Known();

/** Appends an entry to an agent's channel, or messages to another: `/orders/42`. */
async function append(name, entry) {
  const body = typeof entry === "string" ? entry : JSON.stringify(entry), said = `${name} ${body}`;
  if (!unanswered.has(said)) unanswered.set(said, randomID());
  const path = targetPath(name), contentType = name.startsWith("/") ? follower.contentType : "application/json";
  const headers = { "Content-Type": contentType, "Idempotency-Key": unanswered.get(said) };
  for (let attempt = 0; ; attempt++) {
    let answer;
    try { answer = await request(path, { method: "POST", headers, body }); } catch (error) {
      if (attempt >= 5) throw new Error("the server cannot be reached. Try again: it is said once.");
    }
    if (answer?.ok) return unanswered.delete(said);
    if (answer && (attempt >= 5 || ![429, 503].includes(answer.status))) {
      unanswered.delete(said);
      throw new Error((await answer.json().catch(() => ({}))).detail || `the server answers ${answer.status}.`);
    }
    await pause(300 * 2 ** attempt);
  }
}

const targetPath = name => (name.startsWith("/") ? "/v1/stream" + name.split("/").map(encodeURIComponent).join("/") : `/v1/agents/${name}`);

// What is written, as the body of a request: data is sent as it was written, so that no number is rounded on the way.
function written(type) {
  const text = $("text").value.trim();
  if (!composer.isJSON) return follower.isPlain ? $("text").value : { type, text };
  try { JSON.parse(text); } catch (error) { throw new Error(`this is no JSON: ${error.message}`); }
  return follower.isPlain ? text : `{"type":${JSON.stringify(type)},"data":${text}}`;
}

// What is written goes with it where it is of use, and comes back when it could not be said.
async function say(type) {
  const before = $("text").value, text = before.trim();
  if (!follower) { $("problem").textContent = "Choose an agent first."; return $("search").focus(); }
  if (["message", "steer"].includes(type) && !text) return $("text").focus();
  const { name, activity } = follower, takesText = !["cancel", "resume"].includes(type) && text !== "";
  let entry = { type };
  try {
    if (takesText) entry = type === "interrupt" ? { type, text } : written(type);
    // Without a text it is meant for this turn and no other; with one it must not be lost when the turn has just ended.
    else if (activity.turn) entry.if_turn = activity.turn;
  } catch (error) {
    $("problem").textContent = `Not sent: ${error.message}`;
    return;
  }
  if (takesText) { $("text").value = ""; grow(); }
  sending(true);
  try {
    await append(name, entry);
    rows.toEnd();
    follower?.nudge();
    agents.refresh();
  } catch (error) {
    $("problem").textContent = `Not sent: ${error.message}`;
    if (takesText) { $("text").value = [before, $("text").value].filter(Boolean).join("\n"); grow(); }
  }
  sending(false);
}

/** Whether what is written is text, or JSON that is sent as it is. A plain channel of JSON takes nothing else. */
const composer = {
  wantsJSON: false,
  get isJSON() { return follower?.isPlain ? follower.isJSON : this.wantsJSON; },
};

/** The same as commands for a shell. */
const curl = {
  quoted: text => `'${text.replaceAll("'", "'\\''")}'`,
  get key() { return sessionStorage.getItem(keyName) ? ` -H "Authorization: Bearer $PARLEY_TOKEN"` : ""; },
  follow(channel) { return `curl -N${this.key} ${this.quoted(`${location.origin}/v1/stream/${channel}?offset=-1&live=sse`)}`; },
  send() {
    let body = $("text").value;
    try { body = written("message"); } catch { }
    if (typeof body !== "string") body = JSON.stringify(body);
    const type = follower.isPlain ? follower.contentType : "application/json";
    return `curl -X POST${this.key} -H ${this.quoted(`Content-Type: ${type}`)} ${this.quoted(location.origin + targetPath(follower.name))} \\\n  -d ${this.quoted(body)}`;
  },
};

let isSending = false;
function sending(is) {
  isSending = is;
  if (is) $("problem").textContent = "";
  showControls();
}

// Escape is easily pressed by mistake: it interrupts two seconds later, unless it is undone.
const interruption = {
  timer: null,
  get isPending() { return this.timer !== null; },
  begin() {
    const text = $("text").value.trim();
    $("undo").firstElementChild.textContent = text ? "Interrupting, and going on with what you wrote…" : "Interrupting…";
    $("undo").hidden = false;
    this.timer = setTimeout(() => this.now(), 2000);
  },
  end() { clearTimeout(this.timer); this.timer = null; $("undo").hidden = true; },
  now() { this.end(); if (follower?.activity.isTurnUnderWay) say("interrupt"); },
};

// Removing an agent is asked for twice: what it remembers is gone then.
function confirmDelete(channel) {
  $("removeName").textContent = channel.replace(/^agents\//, "");
  $("removeProblem").textContent = "";
  $("remove").showModal();
  $("removeNow").onclick = async () => {
    $("removeNow").disabled = true;
    try {
      const answer = await request(`/v1/${channel}`, { method: "DELETE" });
      if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).detail || `the server answers ${answer.status}.`);
      $("remove").close();
      follower?.nudge();
      agents.refresh();
    } catch (error) {
      $("removeProblem").textContent = `Not deleted: ${error.message}`;
    }
    $("removeNow").disabled = false;
  };
}
