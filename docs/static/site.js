// Live pages follow the light or dark theme that a reader has chosen for the site.
const system = matchMedia("(prefers-color-scheme: dark)");

function follow() {
  const chosen = document.body.dataset.theme;
  const dark = chosen === "dark" || (chosen !== "light" && system.matches);
  for (const frame of document.querySelectorAll("iframe.explorer")) {
    const page = frame.contentDocument?.documentElement; // none where the site is opened from files and not from a server
    if (page) page.dataset.theme = dark ? "dark" : "light";
  }
}

addEventListener("DOMContentLoaded", () => {
  for (const frame of document.querySelectorAll("iframe.explorer")) frame.addEventListener("load", follow);
  new MutationObserver(follow).observe(document.body, { attributes: true, attributeFilter: ["data-theme"] });
  system.addEventListener("change", follow);
});
