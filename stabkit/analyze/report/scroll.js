"use strict";
// Only what can be scrolled is a stop of the Tab key. Without scripts every region stays one.
(() => {
  const marked = new ResizeObserver(entries => {
    for (const { target } of entries) {
      const scrolls = target.scrollWidth > target.clientWidth;
      if (scrolls) target.tabIndex = 0;
      else target.removeAttribute("tabindex");
    }
  });
  document.querySelectorAll(".scroll").forEach(region => marked.observe(region));
})();
