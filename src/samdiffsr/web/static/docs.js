// The API's description, from /openapi.json.

const root = document.documentElement;
const theme = localStorage.getItem("theme");
if (theme) root.dataset.theme = theme;

const here = location.origin;
document.getElementById("first").textContent = `curl -F file=@photo.jpg -F scale=2 ${here}/v1/upscale -o large.jpg`;
document.getElementById("second").textContent = [
  `curl -F file=@photo.jpg ${here}/v1/jobs            # 202, with the job's id`,
  `curl -N ${here}/v1/jobs/ID/events`,
  `curl -OJ ${here}/v1/jobs/ID/result`,
  `curl -X DELETE ${here}/v1/jobs/ID                   # cancels, forgets`,
].join("\n");

function element(tag, text, ...children) {
  const made = document.createElement(tag);
  made.textContent = text;
  made.append(...children);
  return made;
}

const description = await (await fetch("/openapi.json")).json();
const form = description.paths["/v1/upscale"].post.requestBody.content["multipart/form-data"].schema;
for (const [name, field] of Object.entries(form.properties)) {
  const choices = field.enum ? ` One of ${field.enum.join(", ")}.` : "";
  const standard = field.default === undefined ? "" : ` Default: ${field.default}.`;
  const said = choices && field.description.startsWith(field.enum.join(", ")) ? "" : choices;
  const row = element("div", "", element("dt", name, element("small", name === "file" ? "file" : field.type)), element("dd", field.description + said + standard));
  document.getElementById("fields").append(row);
}
for (const [path, methods] of Object.entries(description.paths)) {
  for (const [method, route] of Object.entries(methods)) {
    const title = element("h3", "", element("b", method.toUpperCase()), element("code", path));
    const codes = Object.keys(route.responses).filter((code) => code !== "422" || path.startsWith("/v1/upscale") || path === "/v1/jobs").join(", ");
    const box = element("section", "", title, element("p", route.description ?? route.summary), element("p", `Answers: ${codes}`));
    box.className = "route";
    document.getElementById("routes").append(box);
  }
}
