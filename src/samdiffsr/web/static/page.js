// The page: a list of pictures, each from chosen to enlarged.

import { Problem, enlarge, models, onToken } from "./api.js";
import { fault, ready, values } from "./form.js";
import { show } from "./viewer.js";
import { zip } from "./zip.js";

const $ = (id) => document.getElementById(id);
const AT_ONCE = 2; // one is made while the next goes up

const pictures = [];
let chosen = null, limits = null, number = 0;

const BUSY = ["uploading", "waiting", "running"];
const busy = (picture) => BUSY.includes(picture.state);
const wanted = () => JSON.stringify(values());
const isDue = (picture) => !busy(picture) && picture.state !== "queued" && !picture.hopeless && !(picture.state === "done" && picture.made === wanted());

function say(text) {
  $("status").textContent = text;
}

function complain(text) {
  $("alert").textContent = "";
  requestAnimationFrame(() => ($("alert").textContent = text));
}

// --- pictures come and go ---

function add(files) {
  const first = pictures.length;
  for (const file of files) {
    const picture = { id: ++number, file, name: file.name, url: URL.createObjectURL(file), width: 0, height: 0, state: "new", error: "" };
    pictures.push(picture);
    const image = new Image();
    image.onload = () => {
      [picture.width, picture.height] = [image.naturalWidth, image.naturalHeight];
      render();
    };
    image.onerror = () => update(picture, { unseen: true });
    image.src = picture.url;
    if (limits && file.size > limits.max_bytes) fail(picture, `'${file.name}' is larger than the ${megabytes(limits.max_bytes)} that this server takes; choose a smaller one.`, 413);
  }
  if (pictures.length === first) return;
  choose(pictures[first]);
  say(`${pictures.length - first === 1 ? pictures[first].name : `${pictures.length - first} pictures`} added.`);
}

function choose(picture) {
  chosen = picture;
  render();
}

function remove(picture) {
  picture.stop?.abort();
  const at = pictures.indexOf(picture);
  pictures.splice(at, 1);
  URL.revokeObjectURL(picture.url);
  if (picture.result) URL.revokeObjectURL(picture.result.url);
  if (chosen === picture) chosen = pictures[Math.min(at, pictures.length - 1)] ?? null;
  say(`${picture.name} removed.`);
  render();
  const next = $("pictures").querySelectorAll(".pick")[Math.min(at, pictures.length - 1)];
  (next ?? $("files")).focus();
}

const megabytes = (bytes) => (bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`);

// --- work ---

function start() {
  const wrong = fault();
  if (wrong) {
    complain(wrong);
    $("go-help").textContent = wrong;
    const field = document.querySelector("[aria-invalid]");
    field.closest("details")?.setAttribute("open", "");
    field.focus();
    return;
  }
  for (const picture of pictures.filter(isDue)) Object.assign(picture, { state: "queued", error: "", fields: values(), made: wanted() });
  next();
}

function next() {
  for (const picture of pictures) {
    if (pictures.filter(busy).length >= AT_ONCE) break;
    if (picture.state === "queued") work(picture);
  }
  render();
}

async function work(picture) {
  picture.stop = new AbortController();
  Object.assign(picture, { state: "uploading", part: 0, left: null, place: 0, since: performance.now() });
  try {
    const { job, blob } = await enlarge(picture.file, picture.fields, picture.stop.signal, {
      upload: (part) => update(picture, { part: part < 1 ? part : 0 }),
      full: () => update(picture, { state: "waiting", place: null }),
      job: (now) => {
        const started = now.state === "running" && picture.state !== "running" ? { since: performance.now() } : {};
        update(picture, { state: now.state === "running" ? "running" : "waiting", part: now.progress, left: now.seconds_left, place: now.place, heard: performance.now(), ...started });
      },
    });
    if (picture.result) URL.revokeObjectURL(picture.result.url);
    const url = URL.createObjectURL(blob);
    picture.result = { url, blob, name: job.target, width: job.width, height: job.height, warnings: job.warnings, cleaned: cleaned(job.clean, picture.fields), seen: await canBeSeen(url) };
    picture.state = "done";
    say(`${picture.name} is enlarged to ${job.width} by ${job.height} pixels.`);
  } catch (error) {
    if (error.name === "AbortError") {
      picture.state = picture.result ? "done" : "new";
      if (picture.result) picture.made = "";
      say(`${picture.name} cancelled.`);
    } else if (error instanceof Problem) fail(picture, error.message, error.status);
    else fail(picture, `The page failed at '${picture.name}': ${error.message}`);
  }
  next();
}

/** How much the result was cleaned, in words; "" for a model that cannot clean. */
function cleaned(level, fields) {
  if (level === null) return "";
  if ("clean" in fields || "consistency" in fields) return level ? `cleaned: ${level.toFixed(2)}` : "not cleaned";
  return `cleaned: ${level.toFixed(2)}, estimated`;
}

function canBeSeen(url) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(true);
    image.onerror = () => resolve(false);
    image.src = url;
  });
}

const HOPELESS = [413, 415]; // no setting makes a picture of a text file

function fail(picture, sentence, status = 0) {
  Object.assign(picture, { state: "failed", error: sentence, hopeless: HOPELESS.includes(status) });
  complain(sentence);
}

function update(picture, change) {
  Object.assign(picture, change);
  render();
}

// --- what is seen ---

/** The part done, from the time that the server expects; it never shrinks and never seems finished early. */
function progress(picture) {
  const passed = (performance.now() - picture.since) / 1000, left = secondsLeft(picture);
  const guess = picture.state !== "running" ? 0 : left === null ? picture.part : Math.max(picture.part, passed / (passed + left + 0.01));
  picture.shown = Math.max(guess, picture.state === "running" && passed > 0.1 ? picture.shown ?? 0 : 0);
  return Math.min(picture.shown, 0.99);
}

function secondsLeft(picture) {
  return picture.left === null || picture.left === undefined ? null : Math.max(0, picture.left - (performance.now() - picture.heard) / 1000);
}

function duration(seconds) {
  if (seconds < 1.5) return "a moment left";
  if (seconds < 90) return `about ${Math.round(seconds)}\u00a0s left`;
  return seconds < 5400 ? `about ${Math.round(seconds / 60)}\u00a0min left` : `about ${(seconds / 3600).toFixed(1)}\u00a0h left`;
}

function stateOf(picture) {
  const left = secondsLeft(picture), time = left === null ? "" : `, ${duration(left)}`;
  switch (picture.state) {
    case "new": return picture.width ? `${picture.width} × ${picture.height}` : megabytes(picture.file.size);
    case "queued": return "Waits";
    case "uploading": return picture.part ? `Going up, ${Math.round(100 * picture.part)} %` : "Going up";
    case "waiting": return picture.place === null ? "Waits, the server is busy" : `Waits${picture.place ? `, ${picture.place} before it` : ""}${time}`;
    case "running": return `${Math.round(100 * progress(picture))}\u00a0%${time}`;
    case "failed": return picture.error;
    default: return `${picture.result.width} × ${picture.result.height}, ${megabytes(picture.result.blob.size)}`;
  }
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS("http://www.w3.org/2000/svg", "use"));
  svg.firstChild.setAttribute("href", `#i-${name}`);
  return svg;
}

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function cardOf(picture) {
  if (picture.card) return picture.card;
  const thumb = element("img", { className: "thumb", alt: "", src: picture.url });
  thumb.onerror = () => thumb.replaceWith(element("span", { className: "thumb" }, icon("file")));
  const state = element("span", { className: "state" });
  const pick = element("button", { type: "button", className: "pick" }, thumb, element("span", { className: "text" }, element("span", { className: "name", textContent: picture.name }), state));
  const away = element("button", { type: "button", className: "quiet icon-only" }, icon("close"));
  pick.onclick = () => choose(picture);
  away.onclick = () => (busy(picture) ? picture.stop.abort() : remove(picture));
  picture.card = element("li", { className: "card" }, pick, away);
  picture.parts = { pick, state, away };
  return picture.card;
}

function renderCard(picture) {
  const card = cardOf(picture), { pick, state, away } = picture.parts;
  card.dataset.state = picture.state;
  card.classList.toggle("chosen", picture === chosen);
  pick.setAttribute("aria-current", picture === chosen);
  away.setAttribute("aria-label", `${busy(picture) ? "Cancel" : "Remove"} ${picture.name}`);
  const text = stateOf(picture), mark = { done: "done", failed: "error" }[picture.state];
  if (state.textContent !== text || state.dataset.mark !== (mark ?? "")) {
    state.replaceChildren(...(mark ? [icon(mark)] : []), element("span", { textContent: text }));
    state.dataset.mark = mark ?? "";
  }
  const bar = card.querySelector("progress");
  if (!busy(picture)) bar?.remove();
  else if (!bar) card.append(element("progress", { max: 1, value: 0, ariaHidden: "true" }));
  if (busy(picture)) card.querySelector("progress").value = picture.state === "uploading" ? picture.part : progress(picture);
}

function renderChosen() {
  const { result } = chosen, works = busy(chosen) || chosen.state === "queued";
  show(chosen);
  $("caption-name").textContent = chosen.name;
  const from = chosen.width ? `${chosen.width} × ${chosen.height}` : "";
  $("caption-size").textContent = result ? `${from}${from && " → "}${result.width} × ${result.height}` : from;
  $("caption-clean").textContent = result?.cleaned ? `(${result.cleaned})` : "";
  $("save").disabled = !result;
  $("working").hidden = !works;
  $("working-text").textContent = chosen.state === "running" ? `Enlarging, ${stateOf(chosen)}` : stateOf(chosen);
  $("working-bar").value = chosen.state === "uploading" ? chosen.part : works && chosen.state !== "queued" ? progress(chosen) : 0;
  const notes = result?.warnings.length ? `Please note: ${result.warnings.join("; ")}.` : "";
  $("message").textContent = chosen.state === "failed" ? chosen.error : notes;
  $("message").hidden = !$("message").textContent;
  $("message").classList.toggle("error", chosen.state === "failed");
}

function render() {
  const any = pictures.length > 0;
  $("empty").hidden = any;
  $("viewer").hidden = $("list").hidden = !any;
  pictures.forEach(renderCard);
  const cards = pictures.map(cardOf);
  if (cards.length !== $("pictures").children.length || cards.some((card, at) => card !== $("pictures").children[at])) $("pictures").replaceChildren(...cards);
  if (chosen) renderChosen();
  const due = pictures.filter(isDue), works = pictures.some((picture) => busy(picture) || picture.state === "queued");
  const again = due.length > 0 && due.every((picture) => picture.state === "done");
  $("start").disabled = due.length === 0 || !limits;
  $("start").textContent = due.length > 1 ? `Enlarge ${due.length} pictures${again ? " again" : ""}` : again ? "Enlarge again" : "Enlarge";
  $("go-help").textContent = !any ? "Choose pictures first." : due.length ? "" : works ? "At work." : pictures.some((picture) => picture.result) ? "All done. Change a setting to try another." : "";
  $("save-all").disabled = !pictures.some((picture) => picture.result);
}

setInterval(() => pictures.some(busy) && render(), 250);

// --- saving ---

function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = element("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

$("save").onclick = () => save(chosen.result.blob, chosen.result.name);
$("save-all").onclick = async () => {
  try {
    const results = pictures.map((picture) => picture.result).filter(Boolean);
    save(await zip(results), "samdiffsr.zip");
  } catch (error) {
    complain(error.message);
  }
};

// --- wiring ---

for (const id of ["files", "more"]) $(id).onchange = () => (add($(id).files), ($(id).value = ""), id === "files" && $("start").focus());
$("example").onclick = async () => {
  const blob = await (await fetch("/static/example.png")).blob();
  add([new File([blob], "example.png", { type: "image/png" })]);
  start();
};
$("settings").onsubmit = (event) => (event.preventDefault(), start());
$("cancel").onclick = () => (busy(chosen) ? chosen.stop.abort() : update(chosen, { state: chosen.result ? "done" : "new", made: "" }));
$("clear").onclick = () => [...pictures].forEach(remove);

let depth = 0;
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => carriesFiles(event) && (event.preventDefault(), ($("over").hidden = false), depth++));
addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
addEventListener("dragleave", (event) => carriesFiles(event) && --depth <= 0 && ($("over").hidden = true));
addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  depth = 0;
  $("over").hidden = true;
  add(event.dataTransfer.files);
});
addEventListener("paste", (event) => event.clipboardData?.files.length && (event.preventDefault(), add(event.clipboardData.files)));
addEventListener("beforeunload", (event) => pictures.some(busy) && event.preventDefault());

const root = document.documentElement;
root.dataset.theme = localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
$("theme").onclick = () => localStorage.setItem("theme", (root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark"));

if (!["localhost", "127.0.0.1", "[::1]"].includes(location.hostname)) $("privacy").textContent = `Your pictures go to ${location.host} and are not kept there.`;

onToken(() => new Promise((resolve) => {
  const dialog = $("token-dialog");
  dialog.onclose = () => resolve($("token").value);
  if (!dialog.open) dialog.showModal();
}));

try {
  const offer = await models();
  ready(offer, () => (fault(), render()));
  limits = offer.limits;
  $("limit").textContent = `, up to ${megabytes(limits.max_bytes)} and ${Math.floor(limits.max_pixels / 1e6)} megapixels`;
} catch (error) {
  complain(error.message);
  $("go-help").textContent = error.message;
}
render();
