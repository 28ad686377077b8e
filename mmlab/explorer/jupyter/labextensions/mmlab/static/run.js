// A JupyterLab extension without a build: `mmlab lab` opens the notebook with the explorer's cells run.
const NOTEBOOK = "notebooks/00_explore.ipynb";

async function run(app) {
  if (app.name !== "JupyterLab") return;
  await app.restored;
  const until = async found => {
    while (!found()) await new Promise(resolve => setTimeout(resolve, 50));
    return found();
  };
  const panel = await until(() => [...app.shell.widgets("main")].find(each => each.context?.path === NOTEBOOK));
  await panel.context.ready;
  await panel.context.sessionContext.ready;
  app.shell.activateById(panel.id);
  app.shell.collapseLeft?.();
  const book = panel.content;  // what follows the explorer would keep its kernel busy
  const place = book.widgets.findIndex(cell => cell.model.sharedModel.getSource().includes("mmlab.explore("));
  book.activeCellIndex = place + 1;
  await app.commands.execute("notebook:run-all-above");
  const explorer = await until(() => panel.node.querySelector(".mmlab-explore"));
  book.activeCellIndex = place;
  explorer.scrollIntoView();
}

const plugin = {id: "mmlab:run", autoStart: true, activate: app => { run(app); }};
(window._JUPYTERLAB ??= {}).mmlab = {init: () => {}, get: async () => () => ({__esModule: true, default: plugin})};
