// Files that are dropped anywhere on the page, or chosen.

/** tell: { file(file), nothing() }. `veil` is shown while something is held over the page. */
export function watchFiles(input, veil, tell) {
  let within = 0; // drag events of nested elements come in pairs
  addEventListener("dragenter", (event) => {
    event.preventDefault();
    within += 1;
    veil.hidden = false;
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("dragleave", () => {
    within -= 1;
    veil.hidden = within <= 0;
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    within = 0;
    veil.hidden = true;
    const [file] = event.dataTransfer.files;
    if (file) tell.file(file);
    else tell.nothing();
  });
  input.addEventListener("change", () => {
    if (input.files[0]) tell.file(input.files[0]);
    input.value = "";
  });
}
