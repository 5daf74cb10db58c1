"use strict";
// Optional: without this script the page works but does not update itself.
const live = document.getElementById("live");
const now = () => document.getElementById("now");
let busy = false;
let behind = false;

async function refresh() {
  behind = true;
  if (busy) return;
  busy = true;
  while (behind && document.activeElement?.tagName !== "SELECT") {
    behind = false;
    try {
      const answer = await fetch(now().dataset.url);
      show(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      // The command has stopped. Otherwise the next event retries.
    }
  }
  busy = false;
}

function show(fresh) {
  const [old, part] = [now(), fresh.getElementById("now")];
  if (!part) return;
  const focused = old.contains(document.activeElement) ? document.activeElement.id : null;
  const chosen = document.getElementById("event")?.value;
  const scrolled = [...old.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  if (part.dataset.summary !== old.dataset.summary) live.textContent = part.dataset.summary;
  document.title = fresh.title;
  old.replaceWith(part);
  part.querySelectorAll(".scroll").forEach((box, index) => { box.scrollLeft = scrolled[index] ?? 0; });
  const event = document.getElementById("event");
  if (event && chosen) event.value = chosen;
  if (focused !== null) (document.getElementById(focused) ?? part).focus({ preventScroll: true });
}

// A refresh would close an open list of events, so it waits until the list loses focus.
document.addEventListener("focusout", () => { if (behind) setTimeout(refresh); });
const changes = new EventSource(live.dataset.changes);
changes.addEventListener("message", refresh);
changes.addEventListener("open", () => { if (live.textContent === live.dataset.lost) live.textContent = ""; });
changes.addEventListener("error", () => { live.textContent = live.dataset.lost; });
