// In the gallery two pictures of one paragraph become one, with a slider between before and after. Without this file they stand side by side.

for (const paragraph of document.querySelectorAll("article p")) {
  const pictures = paragraph.querySelectorAll("img");
  if (pictures.length !== 2) continue;
  const slider = document.createElement("input");
  slider.type = "range";
  slider.setAttribute("aria-label", `Percent of the picture that shows the input: ${pictures[0].alt}`);
  slider.addEventListener("input", () => paragraph.style.setProperty("--share", `${slider.value}%`));
  paragraph.classList.add("slider");
  paragraph.append(slider);
}
