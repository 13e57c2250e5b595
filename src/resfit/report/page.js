"use strict";
// A click on a cell of the confusion matrix shows the images behind it.
(function () {
  var shown = null;
  function hide() {
    if (!shown) return;
    document.getElementById(shown.getAttribute("aria-controls")).hidden = true;
    shown.setAttribute("aria-expanded", "false");
    shown = null;
  }
  document.querySelectorAll("button[data-cell]").forEach(function (button) {
    button.addEventListener("click", function () {
      var again = shown === button;
      hide();
      if (again) return;
      var panel = document.getElementById(button.getAttribute("aria-controls"));
      panel.hidden = false;
      button.setAttribute("aria-expanded", "true");
      shown = button;
      panel.scrollIntoView({ block: "nearest" });
    });
  });
  document.addEventListener("keydown", function (event) {
    if (event.key === "Escape" && shown) {
      var button = shown;
      hide();
      button.focus();
    }
  });
})();
