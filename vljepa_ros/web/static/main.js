// The page: joins the connection to what shows it. State lives in the store and in what is on the screen.

import { Ask } from "./ask.js";
import { Connection } from "./connection.js";
import { clock, counted, find, joined, knows, make } from "./dom.js";
import { showExamples, unasked } from "./examples.js";
import { Live } from "./live.js";
import { Recall } from "./recall.js";
import { Store } from "./store.js";
import { Timeline } from "./timeline.js";
import { Watches } from "./watches.js";

const ABSENT = "The perception node is not running. Start vljepa up or perception.launch.py, in the same namespace.";
const QUIET = 3000; // milliseconds without a step after which the stream counts as silent

// The token was good for a cookie; it need not stay in the address and the history.
history.replaceState(null, "", location.pathname);

const store = new Store();
const timeline = new Timeline();
const live = new Live();
let info = null;
let health = { services: {}, nodes: {}, cameras: {} };
let lost = ""; // why there is no connection
let camera = "";
let query = "";
const heard = new Map(); // performance.now() of the last step, by camera

const connection = new Connection({ open: opened, event: take, picture: shown, lost: closed });
const ask = new Ask(connection, () => camera);
const watches = new Watches(connection, () => camera);
const recall = new Recall(connection, () => camera);

function opened() {
  lost = "";
  info = null;
  heard.clear();
  view();
  watches.resume();
  state();
}

function closed(why, seconds) {
  lost = `${why} Trying again${seconds >= 1 ? ` in ${seconds} s` : ""} …`;
  watches.lost();
  live.noPicture(""); // and state() says why
  live.numbers();
  live.forgetScores(camera);
  state();
}

function take(event) {
  const handler = handlers[event.type];
  if (handler) handler(event);
}

const handlers = {
  hello: (event) => [ask, watches, recall].forEach((part) => part.limit(event.limits)),
  info(event) {
    info = event;
    find("model").textContent = `${event.model_id} · ${event.backend} · ${event.precision} · ${counted(event.clip_frames, "frame")} at ${event.sample_rate} Hz`;
    watches.calibrated(event.watch_threshold);
    knows(event);
    ask.unasked(unasked(info));
    showExamples(info, (count) => store.said(count));
    choose();
  },
  health(event) {
    health = event;
    choose();
    ask.hint(event.services);
    recall.hint(event.services);
    live.mute(event);
    live.numbers(event.cameras[camera], stream().steps.at(-1));
    state();
  },
  history: stored,
  change: stored,
  words: stored,
  step(event) {
    heard.set(event.camera, performance.now());
    stored(event);
  },
  labels: labelled,
  scores: labelled,
  watch: (event) => watches.take(event),
  watch_end: (event) => watches.take(event),
};

function stored(event) {
  const known = store.cameras().length;
  store.take(event);
  if (store.cameras().length > known) choose();
  if (event.camera !== camera || event.query !== query) return;
  if (event.type !== "step") showExamples(info, (count) => store.said(count));
  show();
  if (event.type === "step") live.numbers(health.cameras[camera], event);
  state();
}

function labelled(event) {
  live.takeLabels(event);
  live.showLabels(camera);
}

// What of the stream that is chosen is on the screen.
function show() {
  timeline.show(stream());
  live.said(stream(), stream().steps.at(-1));
}

function stream() {
  return store.of(camera, query);
}

// ---------------------------------------------------------------- which camera, which question

function choose() {
  const cameras = [...new Set([...Object.keys(health.cameras), ...store.cameras()])].filter(Boolean).sort();
  fill(find("camera"), cameras, "none yet");
  fill(find("query"), info?.queries ?? [], "");
  find("query-choice").hidden = (info?.queries ?? []).length < 2;
  chosen();
}

function fill(select, values, none) {
  const old = [...select.options].map((option) => option.value);
  if (values.length === old.length && values.every((value, i) => value === old[i])) return;
  const kept = select.value;
  const options = values.map((value) => Object.assign(make("option", "", value), { value }));
  select.replaceChildren(...(options.length ? options : [Object.assign(make("option", "", none), { value: "" })]));
  if (values.includes(kept)) select.value = kept;
  select.disabled = values.length < 1;
}

function chosen() {
  const [newCamera, newQuery] = [find("camera").value, find("query").value];
  if (newCamera === camera && newQuery === query) return;
  const moved = newCamera !== camera;
  [camera, query] = [newCamera, newQuery];
  if (moved) {
    view();
    live.noPicture("No picture yet.");
    live.showLabels(camera);
  }
  live.numbers(health.cameras[camera], stream().steps.at(-1));
  show();
  state();
}

find("camera").addEventListener("change", chosen);
find("query").addEventListener("change", chosen);

// ---------------------------------------------------------------- the picture

function shown(head, blob) {
  if (head.camera === camera && !document.hidden) live.picture(blob);
}

// Pictures come only while they can be seen.
function view() {
  if (connection?.open) connection.request("view", { camera: document.hidden ? "" : camera }).catch(() => {});
}

document.addEventListener("visibilitychange", view);

// ---------------------------------------------------------------- the state

function state() {
  const [level, text] = condition();
  find("state").dataset.level = level;
  if (find("state-text").textContent !== text) find("state-text").textContent = find("state").title = text;
  if (!live.hasPicture) {
    if (level !== "live") live.noPicture(text);
  } else {
    live.stale(silent() ? joined(`as of ${clock(stream().steps.at(-1)?.stamp)}`, text) : "");
  }
}

const silent = () => performance.now() - (heard.get(camera) ?? -Infinity) > QUIET;

function condition() {
  if (lost) return ["bad", lost];
  if (!connection?.open) return ["wait", "Connecting …"];
  const node = health.nodes.perception;
  if (node?.level === 2) return ["bad", node.message];
  if (!silent()) return troubled() ? ["wait", `live, but ${troubled()}`] : ["live", "live"];
  if (!node && !health.services.ask) return ["wait", ABSENT];
  if (!info || node?.message === "unconfigured") return ["wait", "The model is loading …"];
  if (node?.message === "inactive") return ["wait", "The perception node is not active."];
  const told = health.cameras[camera];
  if (told?.level) return ["wait", `No frames: ${told.message}`];
  return ["wait", stream().steps.length ? "No new frames." : "No frames yet."];
}

// What is the matter with a camera that is not shown; empty: nothing.
function troubled() {
  const others = Object.entries(health.cameras).filter(([name, told]) => name !== camera && told.level);
  return others.map(([name, told]) => `${name}: ${told.message}`).join("; ");
}

choose();
state();
