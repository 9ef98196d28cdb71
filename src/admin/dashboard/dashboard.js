// Keeps the page as the farm is: follows /lb/events and sends the forms without leaving the page.
// What comes from outside goes into the page as text, never as HTML; the one exception is the
// charts, which the server has escaped.
"use strict";

const words = JSON.parse(document.body.dataset.words || "{}");
const lang = document.body.dataset.lang || "en";
const word = (key) => words[key] || key;
const stateWord = (state) => word("State" + state.charAt(0).toUpperCase() + state.slice(1));
const byId = (id) => document.getElementById(id);

// What is the same already is left alone: a screen reader would say it again, a selection be lost.
function say(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

function parts(row) {
  const found = {};
  for (const element of row.querySelectorAll("[data-f]")) found[element.dataset.f] = element;
  return found;
}

// ---- Numbers and times, as the server says them

function seconds(value) {
  if (value >= 600) return `${Math.round(value / 60)} min`;
  return value >= 10 ? `${Math.round(value)} s` : `${value.toFixed(1)} s`;
}

const secondsOrDash = (value) => (typeof value === "number" ? seconds(value) : "–");

function clock(text) {
  const at = new Date(text);
  const today = at.toDateString() === new Date().toDateString();
  const time = { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false };
  return today
    ? at.toLocaleTimeString(lang, time)
    : at.toLocaleString(lang, { month: "short", day: "numeric", ...time });
}

function timeElement(text) {
  const time = document.createElement("time");
  time.dateTime = text;
  time.title = text;
  time.textContent = clock(text);
  return time;
}

function localTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) {
    time.title = time.dateTime;
    say(time, clock(time.dateTime));
  }
}

// ---- Backends

const rows = () => byId("rows");
const rowOf = (name) => [...rows().children].find((row) => row.dataset.name === name);

function pill(element, state, text) {
  element.dataset.state = state;
  say(element, text);
}

function showBackend(backend) {
  if (!rows()) return;
  let row = rowOf(backend.name);
  if (!row) {
    row = byId("backend-row").content.firstElementChild.cloneNode(true);
    row.dataset.name = backend.name;
    rows().append(row);
  }
  row.dataset.state = backend.state;
  delete row.dataset.stale;
  const part = parts(row);
  say(part.name, backend.name);
  say(part.url, backend.url);
  part.backup.hidden = !backend.backup;
  pill(part.state, backend.state, stateWord(backend.state));
  const wrong = ["down", "suspect", "ejected"].includes(backend.state);
  say(part.error, (wrong && backend.last_error) || "");
  say(part.queue, `${backend.queue.running} + ${backend.queue.pending}`);
  say(part.clients, `${backend.sessions} / ${backend.websockets}`);
  say(part.calls, String(backend.calls));
  say(part.pace, backend.prompt_seconds > 0 ? seconds(backend.prompt_seconds) : "–");
  say(part.success, backend.calls ? `${(100 * backend.success_rate).toFixed(1)} %` : "–");
  say(part.version, backend.version || "–");
  say(part.types, (backend.task_types || []).join(", "));
  showMemory(part, backend.devices || []);
  part.field.value = backend.name;
  part.group.setAttribute("aria-label", `${part.group.dataset.label} ${backend.name}`);
  for (const button of part.group.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.wanted === backend.wanted));
  }
}

function showMemory(part, devices) {
  const sum = (key) => devices.reduce((total, device) => total + (device[key] || 0), 0) / 2 ** 30;
  const total = sum("vram_total");
  const used = Math.max(0, total - sum("vram_free"));
  part.meter.hidden = !(total > 0);
  say(part.memory, total > 0 ? `${used.toFixed(1)} / ${total.toFixed(1)} GiB` : "–");
  if (total > 0) {
    part.meter.max = total;
    part.meter.value = used;
  }
}

function removeBackend(name) {
  const row = rowOf(name);
  if (!row) return;
  const held = row.contains(document.activeElement);
  row.remove();
  if (held) byId("backends").focus();
}

// A stream begins with all backends and then the totals: who was not named by then is gone.
function markStale() {
  for (const row of rows()?.children || []) row.dataset.stale = "";
}

function dropStale() {
  for (const row of [...(rows()?.children || [])]) if ("stale" in row.dataset) row.remove();
}

// ---- The farm at a glance

function tile(key, text) {
  say(document.querySelector(`[data-tile="${key}"]`), text);
}

function level({ healthy, total }) {
  if (healthy === 0) return "bad";
  return healthy < total ? "fair" : "good";
}

function showStats(stats) {
  dropStale();
  tile("healthy", String(stats.backends.healthy));
  tile("total", String(stats.backends.total));
  byId("health").dataset.level = level(stats.backends);
  tile("queued", String(stats.tasks.queued));
  tile("running", String(stats.tasks.running));
  tile("sessions", String(stats.sessions));
  tile("websockets", String(stats.websockets));
  const strategy = byId("strategy");
  if (document.activeElement !== strategy) strategy.value = stats.strategy;
}

function showSample(pulse) {
  const finished = pulse.finished_per_minute;
  tile("finished", typeof finished === "number" ? finished.toFixed(0) : "–");
  tile("p50", secondsOrDash(pulse.wait_p50));
  tile("p95", secondsOrDash(pulse.wait_p95));
  showCharts();
}

async function showCharts() {
  if (document.hidden) return;
  try {
    const reply = await fetch(`/dashboard/charts?lang=${lang}`);
    if (!reply.ok) return;
    const charts = new DOMParser().parseFromString(await reply.text(), "text/html").body;
    byId("charts").replaceChildren(...charts.childNodes);
  } catch {
    // The next sample tries again.
  }
}

// ---- Events

const MOST_EVENTS = 200;

function showChange(change) {
  const row = document.createElement("tr");
  const [when, who, what] = [
    document.createElement("td"), document.createElement("th"), document.createElement("td"),
  ];
  when.append(timeElement(change.at));
  who.scope = "row";
  who.textContent = change.backend;
  const mark = document.createElement("span");
  mark.className = "pill";
  const added = !change.from && change.to === "unknown";
  const to = added ? word("Came") : change.to ? stateWord(change.to) : word("Gone");
  pill(mark, change.to || "gone", to);
  if (!added) what.append(`${change.from ? stateWord(change.from) : word("Came")} → `);
  what.append(mark);
  if (change.detail) {
    const detail = document.createElement("small");
    detail.textContent = change.detail;
    what.append(" ", detail);
  }
  row.append(when, who, what);
  byId("events").prepend(row);
  while (byId("events").children.length > MOST_EVENTS) byId("events").lastElementChild.remove();
  hear(`${change.backend}: ${to}`);
}

// Said by screen readers, not shown.
function hear(text) {
  const line = document.createElement("span");
  line.textContent = text;
  byId("heard").append(line);
  while (byId("heard").children.length > 5) byId("heard").firstElementChild.remove();
}

// ---- Tasks

const taskRowOf = (id) => [...byId("tasks").children].find((row) => row.dataset.task === id);

function showTask(task) {
  const list = byId("tasks");
  if (!list) return;
  const filter = byId("filter").value;
  let row = taskRowOf(task.task_id);
  if (filter && filter !== task.state) {
    if (row) row.remove();
    return;
  }
  if (!row) {
    row = byId("task-row").content.firstElementChild.cloneNode(true);
    row.dataset.task = task.task_id;
    list.prepend(row);
    while (list.children.length > Number(list.dataset.most)) list.lastElementChild.remove();
  }
  fillTask(row, task);
}

function fillTask(row, task) {
  const part = parts(row);
  const between = (from, to) => (from && to ? Math.max(0, (new Date(to) - new Date(from)) / 1000) : null);
  const short = task.task_id.slice(0, 8);
  say(part.id, short);
  part.id.title = task.task_id;
  pill(part.state, task.state, stateWord(task.state));
  say(part.error, task.error || "");
  say(part.caller, task.caller);
  say(part.backend, task.backend || "–");
  part.created.replaceChildren(timeElement(task.created_at));
  say(part.waited, secondsOrDash(between(task.created_at, task.started_at)));
  say(part.took, secondsOrDash(between(task.started_at, task.finished_at)));
  part.field.value = task.task_id;
  say(part.which, ` ${short}`);
  part.cancel.hidden = !["queued", "running"].includes(task.state);
}

async function listTasks() {
  const list = byId("tasks");
  if (!list) return;
  const filter = byId("filter").value;
  const limit = list.dataset.most;
  try {
    const reply = await fetch(`/lb/tasks?limit=${limit}${filter ? `&state=${filter}` : ""}`);
    if (!reply.ok) return;
    const { tasks } = await reply.json();
    list.replaceChildren();
    for (const task of tasks.reverse()) showTask(task);
  } catch {
    notify(word("Unreachable"), true);
  }
}

// ---- Forms

let noticeEnds;

function notify(text, bad) {
  const notice = byId("notice");
  notice.dataset.bad = String(Boolean(bad));
  notice.textContent = text;
  clearTimeout(noticeEnds);
  noticeEnds = setTimeout(() => { notice.textContent = ""; }, bad ? 12000 : 3000);
}

async function send(form, submitter) {
  const fields = new URLSearchParams(new FormData(form, submitter));
  const headers = { accept: "application/json" };
  try {
    const reply = await fetch(form.action, { method: "POST", body: fields, headers });
    const told = await reply.json();
    if (reply.ok) {
      notify(told.message);
      for (const details of form.querySelectorAll("details")) details.open = false;
      if ("reset" in form.dataset) form.reset();
    } else if (reply.status === 401 || (reply.status === 403 && fields.has("csrf"))) {
      notify(word("OutOfDate"), true);
      setTimeout(() => location.reload(), 1500);
    } else {
      const { message, details } = told.error;
      notify(`${word("Failed")}: ${message}${details ? ` (${details})` : ""}`, true);
    }
  } catch {
    notify(word("Unreachable"), true);
  }
}

document.addEventListener("submit", (event) => {
  const form = event.target;
  if ("plain" in form.dataset || !byId("notice")) return;
  event.preventDefault();
  if ("filter" in form.dataset) listTasks();
  else send(form, event.submitter);
});

document.addEventListener("change", (event) => {
  if (event.target.id === "filter") listTasks();
});

// One menu at a time, closed by Escape or by a click elsewhere.
function closeMenus(except) {
  for (const menu of document.querySelectorAll("details.remove[open]")) {
    if (menu !== except) menu.open = false;
  }
}

document.addEventListener("click", (event) => closeMenus(event.target.closest("details.remove")));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const menu = document.activeElement?.closest("details.remove[open]");
  closeMenus();
  menu?.querySelector("summary").focus();
});

// ---- The stream

const RETRY = 3000;

function link(state, text) {
  const mark = byId("link");
  mark.dataset.link = state;
  say(mark, text);
}

function follow() {
  const stream = new EventSource("/lb/events");
  const on = (name, show) =>
    stream.addEventListener(name, (event) => show(JSON.parse(event.data)));
  stream.onopen = () => {
    markStale();
    link("live", word("Live"));
  };
  stream.onerror = () => {
    link("lost", word("Lost"));
    // The browser tries again by itself unless the answer was an error.
    if (stream.readyState === EventSource.CLOSED) setTimeout(follow, RETRY);
  };
  on("backend", showBackend);
  on("backend_removed", ({ name }) => removeBackend(name));
  on("stats", showStats);
  on("sample", showSample);
  on("change", showChange);
  on("task", showTask);
}

if (byId("link")) {
  localTimes();
  follow();
  document.addEventListener("visibilitychange", showCharts);
}
