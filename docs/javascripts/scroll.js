// What scrolls can be reached from the keyboard, and each block of code has a name for screen readers.
function reachable() {
  for (const box of document.querySelectorAll("pre > code, .md-typeset__scrollwrap, math[display=block]")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
  document.querySelectorAll(".md-code__nav").forEach((nav, i) => nav.setAttribute("aria-label", `Code block ${i + 1}`));
}
addEventListener("load", reachable);
addEventListener("resize", reachable);
new MutationObserver(reachable).observe(document.body, { childList: true, subtree: true }); // the theme wraps tables late
