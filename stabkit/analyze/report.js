"use strict";
(() => {
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const line = style.getPropertyValue("--line");
    return {
      "font.color": getComputedStyle(document.body).color,
      "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
      "xaxis.gridcolor": line, "yaxis.gridcolor": line,
      "xaxis.zerolinecolor": line, "yaxis.zerolinecolor": line,
    };
  };
  const charts = [...document.querySelectorAll(".chart")];
  const settings = {
    responsive: true, displaylogo: false, displayModeBar: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  };
  for (const chart of charts) {
    const content = JSON.parse(document.getElementById(chart.dataset.source).textContent);
    Plotly.newPlot(chart, content.data, content.layout, settings)
      .then(() => Plotly.relayout(chart, colours()));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const chart of charts) Plotly.relayout(chart, colours());
  });
})();
