
"use strict";
(() => {
  // Airflow keeps the choice of its own switch here; without one, the page follows the system.
  const choose = () => {
    const theme = localStorage.getItem("theme");
    document.documentElement.dataset.theme = ["light", "dark"].includes(theme) ? theme : "";
  };
  choose();
  window.addEventListener("storage", choose);
  // Airflow shows a plugin in a frame that may neither leave it nor open a tab. So the window follows these links.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-leaves]");
    if (!link || window.parent === window) return;
    event.preventDefault();
    const copy = window.parent.document.createElement("a");
    copy.href = link.href;
    copy.target = link.target;
    window.parent.document.body.append(copy);
    copy.click();
    copy.remove();
  });
})();
