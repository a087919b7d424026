// Small comforts. Every page works without this file.

// A button to copy each block of code, beside it or above it, never over it.
for (const block of document.querySelectorAll("pre:not(.formula)")) {
  if (!navigator.clipboard) break;
  const frame = document.createElement("div");
  frame.className = "copied";
  block.replaceWith(frame);
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(block.textContent.trim());
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select it";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  frame.append(button, block);
}

// "/" goes to the search box, as in many places.
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, select, textarea, [contenteditable]");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    document.getElementById("find")?.focus();
    event.preventDefault();
  }
});
