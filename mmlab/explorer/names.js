// Sets what ipywidgets cannot: names of slider handles and player buttons, and the pictures' alternative texts.
const root = this.closest(".mmlab-explore"), name = (part, words) => part?.setAttribute("aria-label", words);
root.querySelectorAll(".mmlab-number, .mmlab-play .widget-slider").forEach(
  row => name(row.querySelector(".noUi-handle"), row.querySelector("label").textContent));
root.querySelectorAll(".mmlab-play button").forEach((button, i) => name(button, ["play or pause", "stop"][i]));
root.querySelectorAll(".mmlab-grid img.widget-image").forEach(
  image => {image.alt = image.parentNode.querySelector(".mmlab-head").textContent});
