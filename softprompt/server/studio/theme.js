// Before the first paint: the theme that was chosen here earlier, so that nothing flashes.
(function () {
  const theme = localStorage.getItem("softprompt-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
