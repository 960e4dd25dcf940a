// The settings: a form for people, fields for the API.

const $ = (id) => document.getElementById(id);
const form = $("settings");
let standard = { steps: 1, detail: 1 };
let fields = {};

const plain = (id) => $(id).value.trim().replace(",", ".");

/** The fields to send; those left alone are the server's own defaults, as on the command line. */
export function values() {
  const found = {};
  const kind = form.elements["size-kind"].value;
  if (kind === "other") {
    const measure = $("measure").value, amount = plain("amount");
    if (measure === "scale") found.scale = amount;
    else found.size = measure === "width" ? `${amount}x` : `x${amount}`;
  } else if (kind !== "4") found.scale = kind;
  if (Number($("detail").value) !== standard.detail) found.detail = $("detail").value;
  if (!$("clean-field").hidden && !$("clean-field").disabled && form.elements.clean.value !== "auto") found.clean = form.elements.clean.value;
  if (!$("structure-field").hidden && $("structure").value !== "auto") found.structure = $("structure").value;
  if ($("precision").value !== "auto") found.precision = $("precision").value;
  for (const name of ["steps", "tile"]) if (plain(name)) found[name] = plain(name);
  if (plain("seed") && plain("seed") !== "0") found.seed = plain("seed");
  if ($("format").value !== "auto") found.format = $("format").value;
  if (!$("quality-field").hidden && plain("quality")) found.quality = plain("quality");
  if (!$("keep").checked) found.strip_metadata = "true";
  if ($("consistency").checked) found.consistency = "true";
  if (!$("model-field").hidden && $("model").selectedIndex > 0) found.model = $("model").value;
  return found;
}

const LIMITS = { steps: "steps", tile: "tile", seed: "seed", quality: "quality" };

/** Mark values that the server would refuse; the first sentence about them, or "". */
export function fault() {
  let first = "";
  const check = (id, good, sentence) => {
    $(id).toggleAttribute("aria-invalid", false);
    if (good) return;
    $(id).setAttribute("aria-invalid", "true");
    first ||= sentence;
  };
  for (const [id, name] of Object.entries(LIMITS)) {
    const text = plain(id), { minimum = 0, maximum = Infinity } = fields[name] ?? {};
    const shown = id !== "quality" || !$("quality-field").hidden;
    const good = !shown || text === "" || (/^\d+$/.test(text) && Number(text) >= minimum && Number(text) <= maximum);
    const upto = maximum < 1e9 ? ` to ${maximum}` : "";
    check(id, good, `${$(id).labels[0].firstChild.textContent.trim().replace(/,.*/, "")} must be a whole number from ${minimum}${upto}.`);
  }
  const other = form.elements["size-kind"].value === "other", amount = plain("amount");
  if (!other || $("measure").value === "scale") {
    check("amount", !other || (Number(amount) >= 1 && Number(amount) <= 16), "The factor must be from 1 to 16.");
  } else check("amount", /^[1-9]\d{0,6}$/.test(amount), "The width or height must be a whole number of pixels.");
  return first;
}

const CLEANS = {
  auto: "Auto looks at each picture and removes what does not belong to it.",
  0: "Off takes every pixel as it is: grain and blocks are enlarged too.",
  0.5: "Some is for photos of a phone and pictures of the web.",
  1: "All is for old scans and hard JPEG. Fine texture may go too.",
};

function update() {
  $("clean-field").disabled = $("consistency").checked;
  $("clean-help").textContent = $("consistency").checked ? "Off, because the result is to stay exact when it is reduced again." : CLEANS[form.elements.clean.value];
  $("other-size").hidden = form.elements["size-kind"].value !== "other";
  $("quality-field").hidden = !["jpg", "webp", "avif", "jxl"].includes($("format").value);
  $("quality").placeholder = ["webp", "jxl"].includes($("format").value) ? "lossless" : "95";
  const detail = Number($("detail").value);
  $("detail-value").value = detail.toFixed(2) + (detail === standard.detail ? " (default)" : "");
}

function adopt(model) {
  standard = model;
  $("detail").value = model.detail;
  $("steps").placeholder = String(model.steps);
  $("clean-field").hidden = !model.cleans;
  $("structure-field").hidden = !model.structure_head;
  $("precision").options[0].textContent = `Automatic: ${model.precision}`;
  update();
}

/** Fill in what the server offers (the answer of /v1/models), and call back at each change. */
export function ready(offer, onChange) {
  fields = offer.fields;
  $("model").replaceChildren(...offer.models.map(({ name }) => new Option(name)));
  $("model-field").hidden = offer.models.length < 2;
  $("model").addEventListener("change", () => adopt(offer.models[$("model").selectedIndex]));
  $("new-seed").addEventListener("click", () => {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    onChange();
  });
  $("measure").addEventListener("change", () => ($("amount").value = $("measure").value === "scale" ? "3" : "1920"));
  for (const kind of ["input", "change"]) form.addEventListener(kind, () => (update(), onChange()));
  adopt(offer.models[0]);
}
