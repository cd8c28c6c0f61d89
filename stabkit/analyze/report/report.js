"use strict";
(() => {
  const charts = [...document.querySelectorAll(".chart")];
  const settings = {
    responsive: true, displaylogo: false, displayModeBar: true,
    // by name, since plotly's own choice holds one that sends the data to a server
    modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
    plotlyServerURL: "",
  };
  // the charts of all figures show the same steps
  let moving = false;
  const follow = (moved, change) => {
    const keys = ["xaxis.range[0]", "xaxis.range[1]", "xaxis.autorange"];
    const wanted = Object.fromEntries(Object.entries(change).filter(([key]) => keys.includes(key)));
    if (moving || !Object.keys(wanted).length) return;
    moving = true;
    Promise.all(charts.filter(chart => chart !== moved && chart.data)
      .map(chart => Plotly.relayout(chart, wanted))).finally(() => { moving = false; });
  };
  for (const chart of charts) {
    const content = JSON.parse(document.getElementById(chart.dataset.source).textContent);
    Plotly.newPlot(chart, content.data, content.layout, settings)
      .then(() => chart.on("plotly_relayout", change => follow(chart, change)));
  }
})();
