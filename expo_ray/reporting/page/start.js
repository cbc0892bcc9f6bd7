"use strict";

function start() {
  const data = JSON.parse(document.getElementById("data").textContent);
  for (const host of document.querySelectorAll("[data-section]")) drawSection(host, data.sections[host.dataset.section]);
  const browser = sampleBrowser(document.getElementById("samples-body"), data);
  scatterPlot(document.getElementById("scatter-body"), data, browser.open);
  document.documentElement.dataset.ready = "yes";
}

start();
