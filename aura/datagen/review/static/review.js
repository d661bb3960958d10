// Masks on and off, keys, drafts that save themselves, checks while typing. Without this file the page still works:
// every verdict is a plain form.
"use strict";
document.documentElement.classList.add("js");

const SEG = "[SEG]";
const $ = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const count = (text) => text.split(SEG).length - 1;

// --- masks ---

const stage = $("stage");
stage.style.maxWidth = `calc(78vh * ${stage.dataset.width / stage.dataset.height})`;

function show(object, kind, on) {
  for (const element of all(`[data-object="${object}"][data-kind="${kind}"]`)) {
    if (element.matches(".layer")) element.hidden = !on;
    else element.checked = on;
  }
}

for (const toggle of all(".toggle")) {
  toggle.addEventListener("change", () => show(toggle.dataset.object, toggle.dataset.kind, toggle.checked));
}

function toggleAll(kind) {
  const toggles = all(".toggle").filter((t) => kind === "none" || t.dataset.kind === kind);
  const on = kind !== "none" && toggles.some((t) => !t.checked);
  for (const toggle of toggles) show(toggle.dataset.object, toggle.dataset.kind, on);
}

function toggleObject(index) {
  const row = all(".legend tbody tr")[index];
  if (!row) return;
  const toggles = [...row.querySelectorAll(".toggle")];
  const on = toggles.some((t) => !t.checked);
  for (const toggle of toggles) show(toggle.dataset.object, toggle.dataset.kind, on);
}

for (const button of all("[data-all]")) button.addEventListener("click", () => toggleAll(button.dataset.all));

function look(object) {
  stage.classList.toggle("looking", object !== null);
  for (const element of all(".layer, .legend tbody tr")) {
    element.classList.toggle("looked", element.dataset.object === object);
  }
}

document.addEventListener("mouseover", (event) => {
  const near = event.target.closest(".chip[data-object], .legend tbody tr");
  look(near ? near.dataset.object : null);
});

// --- typing ---

const form = $("form");
if (form) {
  const question = $("question"), answer = $("answer"), note = $("note"), links = $("links");
  const state = $("state"), editor = $("editor");
  const spare = links.querySelector(".link").cloneNode(true);
  for (const option of spare.querySelectorAll("option")) option.removeAttribute("selected");
  const rows = () => [...links.querySelectorAll(".link")];
  let before = answer.value;

  // There is one row of choice for each mark; a mark that comes or goes takes its own row with it.
  function number() {
    rows().forEach((row, i) => { row.querySelector("span").textContent = `${SEG} ${i + 1}`; });
  }
  // A mark that comes back where one was taken away (undo, text typed anew) points at what that one pointed at.
  const gone = new Map();
  function fit(place, difference) {
    for (let i = place; i < place + difference; i++) {
      const row = spare.cloneNode(true);
      row.querySelector("select").value = gone.get(i) || "";
      gone.delete(i);
      links.insertBefore(row, rows()[i] || null);
    }
    for (const [i, row] of rows().slice(place, place - Math.min(difference, 0)).entries()) {
      gone.set(place + i, row.querySelector("select").value);
      row.remove();
    }
    number();
  }
  function followMarks() {
    const now = answer.value;
    let start = 0;
    while (start < before.length && start < now.length && before[start] === now[start]) start++;
    // Of two equal marks side by side, the one at the caret is meant.
    start = Math.max(0, Math.min(start, answer.selectionStart - Math.max(0, now.length - before.length)));
    fit(count(now.slice(0, start)), count(now) - rows().length);
    before = now;
  }
  for (const row of rows().slice(count(before))) row.remove();

  const content = () => ({
    question: question.value,
    answer: answer.value,
    note: note.value,
    objects: rows().map((row) => (row.querySelector("select").value ? Number(row.querySelector("select").value) : null)),
  });
  let saved = JSON.stringify(content());
  let timer = null, sending = false, leaving = false, afterwards = null;

  async function save() {
    timer = null;
    const typed = content(), text = JSON.stringify(typed);
    if (leaving || text === saved) return;
    if (sending) { later(200); return; }
    sending = true;
    state.textContent = "Saving …";
    try {
      const response = await fetch(`${form.getAttribute("action")}/draft`, {
        method: "POST",
        keepalive: true,
        headers: { "content-type": "application/json", "x-form-token": form.elements.form_token.value },
        body: JSON.stringify({
          ...typed,
          order: all(".legend tbody tr").map((row) => Number(row.dataset.object)),
          version: Number(form.elements.version.value),
          draft: form.elements.draft.value,
        }),
      });
      const reply = await response.json();
      if (reply.preview !== undefined) $("preview").innerHTML = reply.preview;
      if (response.ok) {
        saved = text;
        form.elements.draft.value = reply.draft;
        state.textContent = JSON.stringify(content()) === text ? `Draft saved, ${reply.saved}` : "Saving …";
        state.className = "faint";
      } else {
        complain(response.status === 409 ? `Not saved: ${reply.error} Sending shows both texts.` : `Not saved: ${reply.error}`);
        if (response.status !== 409) later(5000);
      }
    } catch {
      complain("Not saved: the server does not answer. Trying again; keep this page open.");
      later(2000);
    } finally {
      sending = false;
      if (afterwards) form.requestSubmit(afterwards);
      afterwards = null;
    }
  }
  function complain(text) {
    state.className = "error";
    state.textContent = text;
  }
  function later(milliseconds) {
    clearTimeout(timer);
    timer = setTimeout(save, milliseconds);
  }
  function typed() {
    if (JSON.stringify(content()) !== saved) state.textContent = "Not saved yet";
    later(400);
  }
  answer.addEventListener("input", followMarks);
  form.addEventListener("input", typed);
  window.addEventListener("pagehide", save);
  document.addEventListener("visibilitychange", () => { if (document.visibilityState === "hidden") save(); });
  form.addEventListener("submit", (event) => {
    // One verdict per page, even for a double click; and no draft may be on its way beside it.
    if (leaving || sending) event.preventDefault();
    if (sending && !leaving) afterwards = event.submitter;
    if (leaving || sending) return;
    leaving = true;
    clearTimeout(timer);
  });
  window.addEventListener("pageshow", () => { leaving = false; });

  function edit() {
    editor.open = true;
    answer.focus();
  }
  $("edit").addEventListener("click", edit);
  $("insert").addEventListener("click", () => {
    answer.focus();
    answer.setRangeText(SEG, answer.selectionStart, answer.selectionEnd, "end");
    answer.dispatchEvent(new Event("input", { bubbles: true }));
  });

  // --- keys ---

  const shortcuts = $("shortcuts");
  shortcuts.checked = localStorage.getItem("aura-keys") !== "off";
  shortcuts.addEventListener("change", () => localStorage.setItem("aura-keys", shortcuts.checked ? "on" : "off"));
  const keys = {
    a: () => $("accept").click(),
    r: () => $("reject").click(),
    e: edit,
    n: () => note.focus(),
    l: () => $("skip").click(),
    v: () => toggleAll("visible"),
    m: () => toggleAll("amodal"),
    0: () => toggleAll("none"),
    "?": () => { const help = document.querySelector(".keys"); help.open = !help.open; },
  };
  document.addEventListener("keydown", (event) => {
    const field = event.target.closest("textarea, select, input:not([type=checkbox])");
    if (field) {
      if (event.key === "Escape") field.blur();
      else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("send").click();
      else if (event.altKey && event.code === "KeyS") $("insert").click();
      else return;
      event.preventDefault();
      return;
    }
    if (!shortcuts.checked || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
    const action = /^[1-9]$/.test(event.key) ? () => toggleObject(Number(event.key) - 1) : keys[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
