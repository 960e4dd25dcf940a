// The server's API: a picture goes up, events come down, the larger picture follows.

export class Problem extends Error {
  constructor(status, detail, retryAfter = 0) {
    super(detail);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let token = sessionStorage.getItem("token") || "";
let askToken = async () => "";

/** Give the function that asks the user for the token. */
export function onToken(ask) {
  askToken = ask;
}

function headers() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function problemOf(status, text, retryAfter) {
  try {
    return new Problem(status, JSON.parse(text).detail, Number(retryAfter) || 0);
  } catch {
    return new Problem(status, `The server answered with the status ${status}.`);
  }
}

const UNREACHABLE = "The server cannot be reached; check that it still runs.";

/** fetch with the token; asks for it when the server wants one. */
async function request(path, options = {}) {
  for (;;) {
    let response;
    try {
      response = await fetch(path, { ...options, headers: headers() });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem(0, UNREACHABLE);
    }
    if (response.ok) return response;
    if (response.status !== 401) throw problemOf(response.status, await response.text(), response.headers.get("Retry-After"));
    token = await askToken();
    sessionStorage.setItem("token", token);
  }
}

export const models = async () => (await request("/v1/models")).json();

/** POST /v1/jobs; XMLHttpRequest, because fetch does not report how far an upload is. */
function upload(file, fields, signal, onUpload) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    form.append("file", file, file.name);
    const call = new XMLHttpRequest();
    call.open("POST", "/v1/jobs");
    for (const [name, value] of Object.entries(headers())) call.setRequestHeader(name, value);
    call.upload.onprogress = (event) => onUpload(event.loaded / event.total);
    call.onload = () =>
      call.status === 202
        ? resolve(JSON.parse(call.responseText))
        : reject(problemOf(call.status, call.responseText, call.getResponseHeader("Retry-After")));
    call.onerror = () => reject(new Problem(0, UNREACHABLE));
    call.onabort = () => reject(new DOMException("Cancelled", "AbortError"));
    signal.addEventListener("abort", () => call.abort(), { once: true });
    call.send(form);
  });
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), reject(new DOMException("Cancelled", "AbortError"))), { once: true });
  });
}

async function submit(file, fields, signal, onUpload, onFull) {
  for (;;) {
    try {
      return await upload(file, fields, signal, onUpload);
    } catch (error) {
      if (error.status !== 503) throw error;
      onFull();
      await pause(error.retryAfter || 5, signal);
    }
  }
}

/** The job's events until it is over; a stream that breaks is opened again. */
async function follow(job, signal, onJob) {
  for (let failures = 0; ; failures++) {
    try {
      const response = await request(`/v1/jobs/${job.id}/events`, { signal });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const events = text.split(/\r?\n\r?\n/);
        text = events.pop();
        for (const event of events) {
          const data = event.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("");
          if (!data) continue;
          failures = 0;
          const now = JSON.parse(data);
          onJob(now);
          if (["done", "failed", "cancelled"].includes(now.state)) return now;
        }
      }
    } catch (error) {
      if (error.name === "AbortError" || error.status > 0 || failures > 4) throw error;
    }
    await pause(1, signal);
  }
}

/** Let go of a job, also while the page is being left. */
function forget(id) {
  fetch(`/v1/jobs/${id}`, { method: "DELETE", headers: headers(), keepalive: true }).catch(() => {});
}

const open = new Set();
addEventListener("pagehide", () => open.forEach(forget));

/** Enlarge a file. on: {upload(part), full(), job(job)}. Returns {job, blob}; throws Problem or AbortError. */
export async function enlarge(file, fields, signal, on) {
  const job = await submit(file, fields, signal, on.upload, on.full);
  open.add(job.id);
  try {
    on.job(job);
    const end = await follow(job, signal, on.job);
    if (end.state === "failed") throw new Problem(end.problem.status, end.error);
    if (end.state === "cancelled") throw new DOMException("Cancelled", "AbortError");
    return { job: end, blob: await (await request(`/v1/jobs/${job.id}/result`, { signal })).blob() };
  } finally {
    open.delete(job.id);
    forget(job.id);
  }
}
