// What is open.

let follower = null;
const tabs = { "": "settled", raw: "raw", trace: "trace", audit: "audit", about: "about" };
const hash = (name, view = "") => "#" + name.split("/").map(encodeURIComponent).join("/") + (view ? `?view=${view}` : "");

// The address says which agent or channel and which view, so that a reload or a link shows the same.
function open() {
  const [path, query] = location.hash.slice(1).split("?");
  let name = "";
  try { name = path.split("/").map(decodeURIComponent).join("/"); } catch { }
  // An agent's channel shows as the agent.
  const agent = name.match(/^\/agents\/([^/]+\/[^/]+)$/)?.[1];
  if (agent && isName(agent)) return location.replace(hash(agent, new URLSearchParams(query).get("view") ?? ""));
  const asked = new URLSearchParams(query).get("view") ?? "", view = asked in tabs ? asked : "";
  follower?.stop();
  follower = null;
  interruption.end();
  $("problem").textContent = "";
  for (const [tab, id] of Object.entries(tabs)) $(id).setAttribute("aria-pressed", String(tab === view));
  const isPlain = /^\/[^/]/.test(name), isAgent = isName(name);
  $("filter").hidden = !(isPlain || isAgent && view === "raw");
  $("home").toggleAttribute("aria-current", !isPlain && !isAgent);
  log.setAttribute("role", isPlain || isAgent && ["", "raw"].includes(view) ? "log" : "region");
  choosing(false);
  if (isPlain || isAgent) {
    document.title = `${name} · Parley`;
    $("name").replaceChildren(...name.split("/").flatMap((part, index) => index ? ["/", make("wbr"), part] : [part]));
    follower = new Follower({ name, view });
    showActivity();
    // On a phone the keyboard would cover what one came to read.
    if (!matchMedia("(pointer: coarse)").matches) $("text").focus({ preventScroll: true });
  } else {
    document.title = "Parley";
    $("name").textContent = "Home";
    $("link").textContent = $("link").dataset.kind = "";
    rows.clear();
    agents.refresh();
  }
  log.scrollTop = 0;
  agents.show();
  showActivity();
}

function go(name, view = "") { if (location.hash === hash(name, view)) open(); else location.hash = hash(name, view); }

function choosing(is) {
  document.body.classList.toggle("choosing", is);
  $("menu").setAttribute("aria-expanded", String(is));
}

function showActivity() {
  const activity = follower?.activity, state = activity?.state || "idle";
  $("status").hidden = !activity || follower.isMissing || follower.isPlain;
  $("status").dataset.state = state;
  const [, word, what] = $("status").children, text = tame(activity?.what || "");
  if (word.textContent !== state) word.textContent = state;
  if (what.textContent !== text) what.textContent = what.title = text;
  const item = follower && [...$("list").children].find(node => node.dataset.name === follower.name);
  if (item && !follower.isEmpty) { item.firstChild.dataset.state = state; item.firstChild.children[2].textContent = state; }
  if (interruption.isPending && !activity?.isTurnUnderWay) interruption.end();
  showControls();
}

function showControls() {
  const activity = follower?.activity, isRunning = Boolean(activity?.isTurnUnderWay), isClosed = Boolean(activity?.isClosed);
  const hasText = $("text").value.trim() !== "", isHalted = Boolean(activity?.isHalted) && !isClosed;
  // What nobody would answer is not offered.
  const isNowhere = !follower || follower.unknown || follower.isDeleted || follower.isPlain && (follower.isMissing || !follower.contentType);
  $("compose").hidden = Boolean(isNowhere);
  $("tabs").hidden = !follower || follower.isPlain || Boolean(follower.unknown);
  $("compose").classList.toggle("running", isRunning);
  $("compose").classList.toggle("halted", isHalted);
  for (const id of ["steer", "interrupt", "cancel"]) { $(id).hidden = !isRunning; $(id).disabled = isSending; }
  // A turn that no program runs takes what ends it or begins it again; all else would only wait.
  for (const id of ["text", "send", "json", "asCurl"]) $(id).hidden = isHalted;
  $("resume").hidden = !isHalted;
  $("resume").disabled = isSending;
  if (isHalted) $("cancel").hidden = false;
  $("steer").disabled = isSending || !hasText;
  $("send").disabled = isSending || isClosed;
  $("text").disabled = isClosed;
  $("json").hidden ||= Boolean(follower?.isPlain);
  $("json").setAttribute("aria-pressed", String(composer.isJSON));
  $("text").classList.toggle("code", composer.isJSON);
  $("interrupt").textContent = hasText ? "Interrupt with this" : "Interrupt";
  $("text").placeholder = placeholder(isClosed, isRunning);
  $("hint").textContent = isHalted ? "The turn has stopped: resume it, or cancel it."
    : isRunning && hasText ? "A steer joins this turn; a message may wait for the next." : "";
}

function placeholder(isClosed, isRunning) {
  if (isClosed) return follower.isPlain ? "This channel is closed" : "This agent has ended";
  if (composer.isJSON) return follower?.isPlain ? "One message as JSON, or a list of them" : "The data of a message, as JSON";
  if (isRunning) return "Say something meanwhile";
  return follower ? `${follower.isPlain ? "Append to" : "Message"} ${follower.name}` : "Message";
}

const grow = () => { $("text").style.height = "auto"; $("text").style.height = `${$("text").scrollHeight}px`; };


// Keys and clicks.

for (const state of ["", ...states]) {
  const chip = make("button", "", make("span", "", state || "all"), make("small"));
  chip.value = state;
  chip.setAttribute("aria-pressed", String(state === ""));
  chip.addEventListener("click", () => agents.only(state));
  $("chips").append(chip);
}
$("find").addEventListener("submit", event => {
  event.preventDefault();
  const name = $("search").value.trim().replace(/^\/?(agents\/)?/, "");
  const target = isName(name) ? name : $("list").firstElementChild?.dataset.name;
  if (!target) return;
  $("search").value = "";
  go(target, follower && !follower.isPlain ? follower.tab : "");
  agents.refresh();
});
let searching;
$("search").addEventListener("input", () => {
  agents.show();
  clearTimeout(searching);
  searching = setTimeout(() => agents.refresh(), 250);
});
$("more").addEventListener("click", () => { agents.pages += 1; agents.refresh(); });
$("list").addEventListener("click", event => { if (event.target.closest("a")?.hash === location.hash) choosing(false); });
$("menu").addEventListener("click", () => choosing(!document.body.classList.contains("choosing")));
$("closeSide").addEventListener("click", () => choosing(false));
for (const [tab, id] of Object.entries(tabs)) $(id).addEventListener("click", () => follower && go(follower.name, tab));
$("json").addEventListener("click", () => { composer.wantsJSON = !composer.wantsJSON; showControls(); $("text").focus(); });
$("asCurl").addEventListener("click", () => follower && copyText(curl.send(), $("asCurl")));
$("removeNot").addEventListener("click", () => $("remove").close());
$("match").addEventListener("input", RawLog.filter);
$("rows").addEventListener("toggle", event => RawLog.unfold(event.target), { capture: true });
$("latest").addEventListener("click", () => rows.toEnd());
log.addEventListener("scroll", () => { if (rows.isAtEnd) $("latest").hidden = true; }, { passive: true });
$("compose").addEventListener("submit", event => { event.preventDefault(); say("message"); });
$("steer").addEventListener("click", () => say("steer"));
$("interrupt").addEventListener("click", () => say("interrupt"));
$("cancel").addEventListener("click", () => say("cancel"));
$("resume").addEventListener("click", () => say("resume"));
$("undoBack").addEventListener("click", () => { interruption.end(); $("text").focus(); });
$("undoNow").addEventListener("click", () => interruption.now());
$("help").addEventListener("click", () => $("keys").showModal());
$("keysDone").addEventListener("click", () => $("keys").close());
$("text").addEventListener("input", () => { grow(); showControls(); });
$("text").addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (isSending) return;
  if (event.ctrlKey || event.metaKey) say(follower?.activity.isTurnUnderWay ? "steer" : "message"); else say("message");
});

const shortcuts = {
  "/": () => { choosing(matchMedia("(max-width: 52rem)").matches); $("search").focus(); $("search").select(); },
  "j": () => agents.move(1), "k": () => agents.move(-1), "m": () => $("text").focus(),
  "r": () => follower && !follower.isPlain && go(follower.name, follower.tab === "raw" ? "" : "raw"),
  "t": () => follower && !follower.isPlain && go(follower.name, follower.tab === "trace" ? "" : "trace"),
  "h": () => { location.hash = ""; }, "?": () => $("keys").showModal(),
};
addEventListener("keydown", event => {
  if (document.querySelector("dialog[open]") || event.defaultPrevented || event.isComposing) return;
  if (event.key === "Escape") return escape(event);
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea, select")) return;
  const act = shortcuts[event.key];
  if (act) { event.preventDefault(); act(); }
});

// The nearest thing first: what is pending, the list, a field, and then the turn.
function escape(event) {
  event.preventDefault();
  if (interruption.isPending) return interruption.end();
  if (document.body.classList.contains("choosing")) return choosing(false);
  if (event.target.matches("#search, #match")) {
    event.target.value = "";
    event.target.dispatchEvent(new Event("input"));
    return $("text").focus();
  }
  if (follower?.activity.isTurnUnderWay && !event.target.matches("#rows input")) return interruption.begin();
  document.activeElement.blur();
}

addEventListener("hashchange", open);
addEventListener("online", () => follower?.nudge());
// A page that the browser keeps to come back to would keep its connection, of which there are six for all pages of a server.
addEventListener("pagehide", () => follower?.stop());
addEventListener("pageshow", event => { if (event.persisted) open(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) { agents.refresh(); follower?.nudge(); } });
// What depends on the time of day: how long, and how long still.
setInterval(() => {
  if (document.hidden || !follower) return;
  for (const node of document.querySelectorAll("[data-until]")) node.textContent = countdown(node.dataset.until);
  if (follower.activity.turn) showActivity();
}, 1000);
grow();
open();
agents.refresh();
agents.schedule();
