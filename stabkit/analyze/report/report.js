"use strict";
(() => {
  const colors = () => {
    const style = getComputedStyle(document.documentElement);
    const line = style.getPropertyValue("--line");
    return {
      "font.color": getComputedStyle(document.body).color,
      "modebar.bgcolor": "rgba(0,0,0,0)", "modebar.orientation": "h",
      "modebar.color": style.getPropertyValue("--soft"),
      "modebar.activecolor": getComputedStyle(document.body).color,
      "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
      "xaxis.gridcolor": line, "yaxis.gridcolor": line,
      "xaxis.zerolinecolor": line, "yaxis.zerolinecolor": line,
    };
  };
  const charts = [...document.querySelectorAll(".chart")];
  const settings = {
    responsive: true, displaylogo: false, displayModeBar: true,
    // by name, since plotly's own choice holds one that sends the data to a server
    modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    plotlyServerURL: "",
  };
  for (const chart of charts) {
    const content = JSON.parse(document.getElementById(chart.dataset.source).textContent);
    Plotly.newPlot(chart, content.data, content.layout, settings)
      .then(() => Plotly.relayout(chart, colors()));
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const chart of charts) Plotly.relayout(chart, colors());
  });
})();
