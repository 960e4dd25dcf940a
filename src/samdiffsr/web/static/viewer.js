// The chosen picture: original and result under one slider, with zoom.

const $ = (id) => document.getElementById(id);
const stage = $("stage"), divider = $("divider"), before = $("before"), after = $("after");
const MOST = 8;

let size = { width: 0, height: 0 }; // of the result, or of the original while there is none
let scale = 1, fit = 1, x = 0, y = 0, share = 0.5, fitted = true, compared = false;

const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

function draw() {
  const { clientWidth: wide, clientHeight: high } = stage;
  for (const name of ["divider", "tag-before", "tag-after"]) $(name).hidden = !compared;
  if (!size.width || !wide) return;
  fit = Math.min(wide / size.width, high / size.height, MOST);
  if (fitted) scale = fit;
  scale = clamp(scale, Math.min(fit, 1), MOST);
  const drawn = { width: size.width * scale, height: size.height * scale };
  x = drawn.width <= wide ? (wide - drawn.width) / 2 : clamp(x, wide - drawn.width, 0);
  y = drawn.height <= high ? (high - drawn.height) / 2 : clamp(y, high - drawn.height, 0);
  for (const image of [before, after]) {
    image.style.width = `${drawn.width}px`;
    image.style.height = `${drawn.height}px`;
    image.style.transform = `translate(${x}px, ${y}px)`;
  }
  const left = clamp(x, 0, wide), right = clamp(x + drawn.width, 0, wide);
  const at = compared ? left + (right - left) * share : wide;
  $("layer-before").style.clipPath = `inset(0 ${wide - at}px 0 0)`;
  divider.style.left = `${at}px`;
  const percent = Math.round(100 * share);
  divider.setAttribute("aria-valuenow", percent);
  divider.setAttribute("aria-valuetext", `${percent} % original, ${100 - percent} % enlarged`);
  $("tag-before").classList.toggle("faint", at < 110);
  $("tag-after").classList.toggle("faint", wide - at < 110);
  $("zoom").value = `${Math.round(100 * scale)} %`;
  stage.classList.toggle("zoomed", drawn.width > wide + 1 || drawn.height > high + 1);
}

function zoomTo(wanted, about = { x: stage.clientWidth / 2, y: stage.clientHeight / 2 }) {
  const next = clamp(wanted, Math.min(fit, 1), MOST), ratio = next / scale;
  x = about.x - (about.x - x) * ratio;
  y = about.y - (about.y - y) * ratio;
  scale = next;
  fitted = Math.abs(scale - fit) < 1e-3;
  draw();
}

function setShare(value) {
  share = clamp(value, 0, 1);
  draw();
}

function shareAt(clientX) {
  const box = stage.getBoundingClientRect();
  const left = clamp(x, 0, box.width), right = clamp(x + size.width * scale, 0, box.width);
  setShare((clientX - box.left - left) / Math.max(1, right - left));
}

const KEYS = { ArrowLeft: -0.01, ArrowDown: -0.01, ArrowRight: 0.01, ArrowUp: 0.01, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 };
divider.addEventListener("keydown", (event) => {
  if (!(event.key in KEYS)) return;
  event.preventDefault();
  event.stopPropagation();
  setShare(share + KEYS[event.key] * (event.shiftKey ? 10 : 1));
});

const MOVES = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
stage.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "+" || event.key === "=") zoomTo(scale * 1.25);
  else if (event.key === "-") zoomTo(scale / 1.25);
  else if (event.key === "0") fitIn();
  else if (event.key in MOVES && stage.classList.contains("zoomed")) {
    [x, y] = [x + MOVES[event.key][0], y + MOVES[event.key][1]];
    draw();
  } else return;
  event.preventDefault();
});

function fitIn() {
  fitted = true;
  draw();
}

// Pointers: the divider follows one that grips it, or any one while the picture fits in; otherwise one moves the picture,
// and two zoom it.
const pointers = new Map();
let grips = false;

stage.addEventListener("pointerdown", (event) => {
  if (event.button || event.target.closest("button, .working")) return;
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  grips = compared && (event.target.closest("#divider") !== null || !stage.classList.contains("zoomed"));
  if (grips && pointers.size === 1) {
    shareAt(event.clientX);
    divider.focus({ preventScroll: true });
  } else stage.focus({ preventScroll: true });
  event.preventDefault();
});

stage.addEventListener("pointermove", (event) => {
  const last = pointers.get(event.pointerId);
  if (!last) return;
  const now = { x: event.clientX, y: event.clientY };
  if (pointers.size === 2) {
    const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
    const box = stage.getBoundingClientRect();
    const ratio = Math.hypot(now.x - other.x, now.y - other.y) / Math.max(1, Math.hypot(last.x - other.x, last.y - other.y));
    zoomTo(scale * ratio, { x: (now.x + other.x) / 2 - box.left, y: (now.y + other.y) / 2 - box.top });
  } else if (grips) shareAt(now.x);
  else {
    [x, y] = [x + now.x - last.x, y + now.y - last.y];
    draw();
  }
  pointers.set(event.pointerId, now);
});
for (const kind of ["pointerup", "pointercancel"]) stage.addEventListener(kind, (event) => pointers.delete(event.pointerId));

stage.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return; // a plain wheel scrolls the page
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  zoomTo(scale * Math.exp(-event.deltaY / 300), { x: event.clientX - box.left, y: event.clientY - box.top });
}, { passive: false });

$("zoom-in").addEventListener("click", () => zoomTo(scale * 1.5));
$("zoom-out").addEventListener("click", () => zoomTo(scale / 1.5));
$("zoom-fit").addEventListener("click", fitIn);
$("zoom-full").addEventListener("click", () => zoomTo(1));
new ResizeObserver(draw).observe(stage);

let shown = null;

/** Show a picture: {name, url, width, height, result: {url, width, height} or null}. */
export function show(picture) {
  const key = `${picture.url} ${picture.width} ${picture.unseen} ${picture.error} ${picture.result?.url}`;
  if (key === shown) return;
  shown = key;
  const { result } = picture;
  const known = picture.width > 0;
  before.src = picture.url;
  before.alt = `Original: ${picture.name}`;
  after.hidden = !result;
  if (result) {
    after.src = result.url;
    after.alt = `Enlarged: ${result.name}`;
  } else after.removeAttribute("src");
  before.hidden = !known;
  size = result ? { width: result.width, height: result.height } : { width: picture.width, height: picture.height };
  compared = Boolean(result) && known && result.seen;
  const unseen = picture.unseen && !result && !picture.error ? "This browser cannot show this kind of file, but it can be enlarged." : "";
  $("unseen").textContent = !known && picture.error ? picture.error : result && !result.seen ? "This browser cannot show this kind of file; save it to look at it." : unseen;
  $("unseen").hidden = !$("unseen").textContent;
  fitIn();
}
